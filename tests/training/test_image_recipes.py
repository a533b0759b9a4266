"""What recipes of image networks add: rates that drop in steps, decay of weights alone, bfloat16, batch norm estimated anew."""

from __future__ import annotations

import copy
import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from short_runs import InterruptedRunError, stop_at
from torch import nn

from sparsebench import variational_dropout
from sparsebench.records.run_folder import RunFolder
from sparsebench.training import preparation
from sparsebench.training.batch_norm import estimate_batch_norm, estimated_batch_norm
from sparsebench.training.config import KeptSchedule, RunConfig, resolve
from sparsebench.training.dropout import set_dropout
from sparsebench.training.longer_training import rate_factor
from sparsebench.training.loop import learning_rate_factor
from sparsebench.training.run import train
from sparsebench.workloads.images.in_memory import InMemoryImages
from sparsebench.workloads.images.named_sets import images_workload
from sparsebench.workloads.images.networks import PreActivationBlock, make_network
from sparsebench.workloads.recipes import reference_recipes
from sparsebench.workloads.workload import Recipe, Split


def recipe(**settings: object) -> Recipe:
    return Recipe.model_validate({"steps": 10, "batch_size": 6, "optimizer": "sgd", "learning_rate": 0.1} | settings)


def write_images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 30)):
        for number in range(count):
            place = folder / split / f"class{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 200, (12, 12, 3), dtype=np.uint8)
            pixels[:, :, number % 3] += 50
            Image.fromarray(pixels).save(place / f"{number:03}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> str:
    return f"images:resnet-8@{write_images(tmp_path / 'images')}"


def test_rate_drops_at_milestones() -> None:
    steps = recipe(learning_rate_schedule="step", milestones=[0.3, 0.6], learning_rate_decay=0.5, warmup_steps=2)
    factors = [learning_rate_factor(steps, step) for step in range(10)]
    assert factors == [0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("variant", ["constant-decay-points", "constant-final-rate"])
def test_longer_training_drops_the_rate_where_the_shorter_one_did(variant: str) -> None:
    longer = recipe(steps=20, learning_rate_schedule="step", milestones=[0.3, 0.6], learning_rate_decay=0.5)
    kept = KeptSchedule.model_validate({"variant": variant, "steps": 10})
    factor = rate_factor(longer, kept, learning_rate_factor)
    assert [factor(step) for step in range(20)] == [1.0] * 3 + [0.5] * 3 + [0.25] * 14


def test_resnet_cifar_is_the_recipe_of_its_paper() -> None:
    given = reference_recipes("sparsebench.workloads.images")["resnet-cifar"].recipe(45_000)
    rates = [given.learning_rate * learning_rate_factor(given, step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_wide_resnet_is_the_recipe_of_rigl() -> None:
    found = reference_recipes("sparsebench.workloads.images")["wide-resnet"]
    given = found.recipe(45_000)
    steps = (0, 29_999, 30_000, 59_999, 60_000, 89_999, 90_000)
    rates = [given.learning_rate * learning_rate_factor(given, step) for step in steps]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008])
    assert (given.dropout, given.weight_decay_on, found.published) == (0.3, "weights", {"cifar10/wrn-22-2": 94.1})
    network = make_network("wrn-16-2", 3, 8, 2)
    set_dropout(network, 1 - 1e-9)  # nothing passes the second convolutions: every block is its shortcut
    block = next(module for module in network.modules() if isinstance(module, PreActivationBlock) and module.shortcut is None)
    images = torch.rand(2, 32, 8, 8)
    assert torch.equal(block.train()(images), images)
    assert not torch.equal(block.eval()(images), images)


def test_imagenet_is_the_recipe_of_the_study() -> None:
    """Gale, Elsen and Hooker 2019, appendix: epochs of 1,281,167 images and 1,024 a step."""
    found = reference_recipes("sparsebench.workloads.images")["imagenet"]
    given = found.recipe(1_271_167)
    assert (given.steps, given.batch_size, given.optimizer, given.weight_decay) == (128_000, 1024, "sgd", 1e-4)
    assert (given.weight_decay_on, found.published) == ("weights", {"imagenet/resnet-50": 76.69})
    epoch = 1_281_167 / 1024
    # Milestones are rounded to four digits: a fiftieth of an epoch is near enough.
    for epochs, before, after in ((30, 0.4, 0.04), (60, 0.04, 0.004), (80, 0.004, 0.0004)):
        rates = [given.learning_rate * learning_rate_factor(given, round(epochs * epoch) + by) for by in (-25, 25)]
        assert rates == pytest.approx([before, after])
    warm_up = [given.learning_rate * learning_rate_factor(given, round(part * 5 * epoch)) for part in (0.5, 1.0)]
    assert warm_up == pytest.approx([0.2, 0.4], rel=1e-3)
    assert given.learning_rate * learning_rate_factor(given, 0) == pytest.approx(0.4 / 6256)


# Of each recipe its revision and the first digits of a digest of all that it says. A recipe that changes has another revision, so
# that no run goes on, and none is looked up, under a recipe that it was not trained by.
FROZEN = {
    "lenet-5": (1, "c0ea4b13"),
    "lenet-300-100": (2, "1c48cde2"),
    "small-resnet": (1, "c74e08f6"),
    "resnet-cifar": (1, "b280b8e3"),
    "wide-resnet": (2, "a30505e4"),
    "imagenet": (2, "277597eb"),
    "large-images": (1, "33c7df67"),
}


def test_a_recipe_that_changes_has_another_revision() -> None:
    entries = yaml.safe_load((files("sparsebench.workloads.images") / "recipes.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, entry in entries.items():
        said = json.dumps([entry["recipe"], entry.get("augmented", True)], sort_keys=True)
        found[name] = (entry["revision"], hashlib.sha256(said.encode()).hexdigest()[:8])
    assert found == FROZEN


def test_later_settings_leave_configurations_as_they_were_where_they_are_not_used(images: str) -> None:
    plain = resolve("digits", "dense", {})
    assert not set(plain.model_dump(mode="json")["recipe"]) & {"milestones", "precision", "weight_decay_on", "batch_norm_batches"}
    assert not set(plain.model_dump()["recipe"]) & {"milestones", "precision", "weight_decay_on", "batch_norm_batches"}
    settings = {"batch_size": 6, "learning_rate_schedule": "step", "milestones": [0.5], "batch_norm_batches": 3}
    used = resolve(images, "dense", {}, settings)
    assert RunConfig.model_validate_json(used.model_dump_json()) == used


def test_decay_of_weights_alone_spares_norms_biases_and_a_methods_own_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    sparsifier = variational_dropout(penalty=0.1)
    sparsifier.prepare(model)
    optimizer = preparation._optimizer(recipe(weight_decay=0.5, weight_decay_on="weights"), sparsifier)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.5 if name.endswith("weight") and parameter.ndim > 1 else 0.0
        assert decays[id(parameter)] == expected, name
    assert len(decays) == len(list(model.parameters()))


def test_estimated_statistics_are_plain_means_over_the_first_batches(images: str) -> None:
    task = images_workload(images.removeprefix("images:"))
    torch.manual_seed(0)
    model = task.build_model()
    trained = copy.deepcopy(model.state_dict())
    given = recipe(batch_norm_batches=3)
    with estimated_batch_norm(model, task, given, 4):
        norm = model[1]
        assert isinstance(norm, nn.BatchNorm2d)
        batches = [model[0](task.batch(4, step, 6).pixels).detach().double() for step in range(3)]
        mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
        variance = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
        assert torch.allclose(norm.running_mean.double(), mean, atol=1e-5)
        assert torch.allclose(norm.running_var.double(), variance, rtol=1e-4)
        assert norm.momentum == 0.1
        assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]), name
    estimate_batch_norm(model, task, recipe(), 4)  # 0 batches: nothing happens
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_run_with_all_of_it_trains_resumes_and_says_so(images: str, tmp_path: Path) -> None:
    settings = {
        "steps": 12,
        "batch_size": 6,
        "learning_rate": 0.05,
        "learning_rate_schedule": "step",
        "milestones": [0.5],
        "precision": "bfloat16",
        "batch_norm_batches": 2,
    }
    config = resolve(images, "magnitude", {"sparsity": 0.5, "end": 0.5, "frequency": 0.25}, settings)
    whole = train(config, RunFolder(tmp_path / "whole"))
    assert whole.environment["batch norm"] == "estimated anew over 2 batches after thresholding"
    assert whole.points[0].sparsity == pytest.approx(0.5, abs=0.01)

    with pytest.raises(InterruptedRunError):
        train(config, RunFolder(tmp_path / "again"), checkpoint_seconds=0.0, observe=stop_at(7))
    again = train(config, RunFolder(tmp_path / "again"))
    assert again.points == whole.points
    assert again.weights_sha256 == whole.weights_sha256


def test_curves_are_of_the_network_as_it_is_evaluated_in_the_end(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    evaluate = InMemoryImages.evaluate

    def looking(task: InMemoryImages, model: nn.Module, split: Split) -> dict[str, float]:
        if split == "validation":
            seen.append(model[1].running_mean.clone())  # type: ignore[index,union-attr,operator]
        return evaluate(task, model, split)

    monkeypatch.setattr(InMemoryImages, "evaluate", looking)
    train(resolve(images, "dense", {}, {"steps": 3, "batch_size": 6, "batch_norm_batches": 2}), RunFolder(tmp_path / "run"))
    *_, last_of_the_curve, in_the_end = seen
    assert len(seen) == 4
    assert torch.equal(last_of_the_curve, in_the_end)


def test_bfloat16_changes_the_training_and_keeps_the_weights_in_float32(images: str, tmp_path: Path) -> None:
    short = {"steps": 3, "batch_size": 6}
    full = train(resolve(images, "dense", {}, short), RunFolder(tmp_path / "a"))
    half = train(resolve(images, "dense", {}, short | {"precision": "bfloat16"}), RunFolder(tmp_path / "b"))
    assert full.run_id != half.run_id
    assert full.weights_sha256 != half.weights_sha256
    # Both keep weights of four bytes.
    assert (
        abs((tmp_path / "a" / "model.safetensors").stat().st_size - (tmp_path / "b" / "model.safetensors").stat().st_size) < 2000
    )
