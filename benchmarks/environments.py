"""An environment of its own for every package that is compared, built with venv and pip."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """What is installed to measure a package.

    Attributes:
        requirements: For pip, with versions.
        shares_torch: Whether torch comes from the environment "torch", so that all are measured on the same version of it; a
            package that asks for an older torch or brings parts that need one gets a torch of its own.
        known_failure: What to say when pip fails, where its own message does not tell why.
    """

    requirements: tuple[str, ...]
    shares_torch: bool = True
    known_failure: str = ""


PACKAGES = {
    "sparsebench": Package(("safetensors", "zstandard")),
    "torch-prune": Package(()),
    "torch-ao": Package(()),
    "nncf": Package(("nncf==3.4.0", "torchao")),  # strip imports it, not declared
    "torch-pruning": Package(("torch-pruning==1.6.1",)),
    "sparselab": Package(("sparselab==0.2.2",)),
    "rigl-torch": Package(("rigl-torch==0.5.2", "torchvision")),  # imported, not declared
    "sparsimony": Package(("sparsimony==0.1.0", "numpy<2")),
    # 1.9.0 and the sparsezoo 1.9.0 that 1.8.0 would bring fail to build: "has reached end-of-life and is no longer supported".
    # It imports pkg_resources, which setuptools 82 no longer has.
    "sparseml": Package(("sparseml[torch]==1.8.0", "sparsezoo==1.8.1", "numpy<2", "setuptools<82"), False),
    "lightning": Package(("lightning==2.6.6",)),
    "modelopt": Package(("nvidia-modelopt==0.47.0", "requests", "huggingface_hub")),  # imported, not declared
}
BASE = "torch"
BASE_REQUIREMENTS = ("torch", "numpy")


def interpreter(folder: Path, name: str) -> Path:
    """The Python of an environment."""
    return folder / name / "bin" / "python"


def build(folder: Path, name: str) -> str | None:
    """Make the environment `name` under `folder`, again from nothing.

    Returns:
        None, or why it cannot be made: pip's last line that says "error".
    """
    if name == BASE:
        return _install(folder, BASE, BASE_REQUIREMENTS)
    package = PACKAGES[name]
    if not package.shares_torch:
        failure = _install(folder, name, package.requirements)
        return (package.known_failure or failure) if failure else None
    if not interpreter(folder, BASE).exists():
        failure = build(folder, BASE)
        if failure:
            return failure
    _create(folder, name)
    # What is in the environment itself comes first, what it lacks comes from the shared one: each may have its own numpy.
    _site_packages(folder, name).joinpath("shared_torch.pth").write_text(f"{_site_packages(folder, BASE)}\n")
    return _pip(folder, name, package.requirements) if package.requirements else None


def _install(folder: Path, name: str, requirements: tuple[str, ...]) -> str | None:
    _create(folder, name)
    return _pip(folder, name, requirements)


def _create(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)


def _pip(folder: Path, name: str, requirements: tuple[str, ...]) -> str | None:
    command = [str(interpreter(folder, name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    folder.joinpath(f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return None
    errors = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
    return errors[-1] if errors else f"pip ended with status {done.returncode}"


def _site_packages(folder: Path, name: str) -> Path:
    root = str(folder / name)
    return Path(sysconfig.get_path("purelib", vars={"base": root, "platbase": root})).resolve()
