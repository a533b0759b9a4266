"""HTML from templates: everything in one file, styles, scripts and data included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sparsebench.atomic import atomic_file

__all__ = ["render", "write_rendered"]


def render(template: str, *, figures: Mapping[str, Any], **texts: Any) -> str:
    """Fill a template.

    Args:
        template: Its file, beside this one.
        figures: The data of the figures, for the page's script.
        **texts: What else the template names.

    Returns:
        The page. Texts in it are texts, whatever they hold.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparsebench.analysis", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (resources.files("sparsebench.analysis") / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        figures=_as_script_data(figures), style=Markup(style), plotly=Markup(get_plotlyjs()), **texts
    )


def write_rendered(page: str, target: Path) -> Path:
    """Write a page, whole or not at all.

    Returns:
        The file that was written.

    Raises:
        SparsebenchError: It cannot be written.
    """
    with atomic_file(target) as file:
        file.write(page.encode())
    return target


def _as_script_data(value: Any) -> Markup:
    """JSON that can stand inside a script element whatever texts are in it: none can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
