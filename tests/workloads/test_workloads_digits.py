from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.workloads.images.classification import Images
from sparsebench.workloads.images.digits import DIGITS, load_digits

SPLITS = load_digits()

# The split is part of the workload's revision: raise it where these change on purpose.
FROZEN = {
    "training": (1077, "07ce366d83bccad2"),
    "validation": (360, "d0469c436274c9c1"),
    "test": (360, "9cd33930ebf210a4"),
}


def original() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits as load

    digits = load()
    return torch.from_numpy(digits.images), torch.from_numpy(digits.target)


def grey_levels(images: Images) -> torch.Tensor:
    """The whole numbers 0 to 16 that the images were before they were normalised."""
    pixels = original()[0]
    scale = (SPLITS.training.pixels.max() - SPLITS.training.pixels.min()) / (pixels.max() - pixels.min())
    levels = (images.pixels - SPLITS.training.pixels.min()) / scale
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    return levels.round().to(torch.uint8)


@pytest.mark.parametrize("split", FROZEN)
def test_splits_never_change(split: str) -> None:
    images: Images = getattr(SPLITS, split)
    size, frozen = FROZEN[split]
    assert images.pixels.shape == (size, 1, 8, 8)
    assert (images.pixels.dtype, images.labels.dtype) == (torch.float32, torch.int64)
    digest = hashlib.sha256(grey_levels(images).numpy().tobytes() + images.labels.to(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == frozen


def test_splits_are_disjoint_and_together_all_images() -> None:
    pixels, labels = original()
    parts = [SPLITS.training, SPLITS.validation, SPLITS.test]
    ours = sorted(
        (tuple(image.flatten().tolist()), int(label))
        for part in parts
        for image, label in zip(grey_levels(part), part.labels, strict=True)
    )
    theirs = sorted((tuple(int(v) for v in image.flatten()), int(label)) for image, label in zip(pixels, labels, strict=True))
    assert ours == theirs
    assert len({image for image, _ in theirs}) == len(theirs)  # no image is there twice, so that no two parts can share one


def test_training_images_have_mean_0_and_deviation_1() -> None:
    assert float(SPLITS.training.pixels.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(SPLITS.training.pixels.std()) == pytest.approx(1.0, abs=1e-5)


def test_every_class_is_in_every_split() -> None:
    for part in (SPLITS.training, SPLITS.validation, SPLITS.test):
        assert part.labels.bincount(minlength=10).min() >= 20


def origins(batch: Images) -> list[tuple[int, int, int]]:
    """For every image of a batch the training image it comes from, and how far it was moved down and to the right."""
    training = SPLITS.training
    background = float(training.pixels.amin())
    moved = {}
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            for index, image in enumerate(F.pad(training.pixels, (1, 1, 1, 1), value=background)):
                shifted = torch.roll(image, (down, right), (1, 2))[:, 1:-1, 1:-1]
                moved.setdefault((shifted.numpy().tobytes(), int(training.labels[index])), (index, down, right))
    return [moved[image.numpy().tobytes(), int(label)] for image, label in zip(batch.pixels, batch.labels, strict=True)]


def test_every_example_comes_once_an_epoch_moved_by_at_most_a_pixel() -> None:
    steps = 1077 // 32
    epochs = []
    for epoch in range(2):
        batches = [DIGITS.batch(7, epoch * steps + step, 32) for step in range(steps)]
        together = Images(torch.cat([batch.pixels for batch in batches]), torch.cat([batch.labels for batch in batches]))
        found = origins(together)
        assert len({index for index, _, _ in found}) == len(found) == steps * 32
        moves = [(down, right) for _, down, right in found]
        assert all(moves.count((down, right)) > 60 for down in (-1, 0, 1) for right in (-1, 0, 1))  # about 117 of each
        epochs.append(found)
    first, second = ([index for index, _, _ in found] for found in epochs)
    assert first != second
    # The remainder that an epoch leaves out is another one each time.
    assert set(range(1077)) - set(first) != set(range(1077)) - set(second)
    moved = [{index: move for index, *move in found} for found in epochs]
    same = [moved[0][index] == moved[1][index] for index in moved[0].keys() & moved[1].keys()]
    assert sum(same) < len(same) / 4  # one in nine by chance


def equal(one: Images, other: Images) -> bool:
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)


def test_batch_depends_on_seed_and_step_alone() -> None:
    expected = DIGITS.batch(1, 50, 32)
    torch.manual_seed(99)
    for seed, step in [(2, 50), (1, 0), (3, 1000), (1, 51), (4, 70), (5, 90), (6, 110)]:  # more than any cache holds
        DIGITS.batch(seed, step, 32)
    assert equal(DIGITS.batch(1, 50, 32), expected)
    assert not equal(DIGITS.batch(2, 50, 32), expected)
    assert not equal(DIGITS.batch(1, 51, 32), expected)


def test_changing_a_batch_does_not_change_the_data() -> None:
    expected = DIGITS.batch(1, 0, 32)
    batch = DIGITS.batch(1, 0, 32)
    batch.pixels.zero_()
    batch.labels.zero_()
    assert equal(DIGITS.batch(1, 0, 32), expected)


def test_batch_of_all_examples_is_an_epoch() -> None:
    assert len(set(origins(DIGITS.batch(0, 3, 1077)))) == 1077


def test_network_has_about_50_000_weights() -> None:
    model = DIGITS.build_model()
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    assert 45_000 <= weights <= 55_000
    assert f"{weights:,}" in DIGITS.summary
    assert model(SPLITS.test.pixels[:3]).shape == (3, 10)


def test_network_is_drawn_from_the_default_generator() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(torch.cat([parameter.detach().flatten() for parameter in DIGITS.build_model().parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


class Oracle(nn.Module):
    """Answers with the labels of a split, wrongly for the first few."""

    def __init__(self, labels: torch.Tensor, wrong: int) -> None:
        super().__init__()
        answers = labels.clone()
        answers[:wrong] = (answers[:wrong] + 1) % 10
        self.answers, self.seen, self.was_training = answers, 0, True

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.was_training &= self.training
        answers = self.answers[self.seen : self.seen + len(pixels)]
        self.seen += len(pixels)
        return 100.0 * F.one_hot(answers, 10).float()


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_counts_right_answers_and_restores_the_training_flag(split: str, training: bool) -> None:
    oracle = Oracle(getattr(SPLITS, split).labels, wrong=36).train(training)
    metrics = DIGITS.evaluate(oracle, split)  # type: ignore[arg-type]
    assert metrics["accuracy"] == pytest.approx(90.0)
    assert metrics["loss"] == pytest.approx(10.0, rel=1e-3)
    assert oracle.training is training
    assert not oracle.was_training
    assert DIGITS.metric in metrics


def test_training_flag_is_restored_after_an_error_too() -> None:
    model = nn.Linear(3, 3)  # the wrong shape
    with pytest.raises(RuntimeError):
        DIGITS.evaluate(model, "test")
    assert model.training


def test_evaluation_needs_no_gradient_and_leaves_none() -> None:
    model = DIGITS.build_model()
    DIGITS.evaluate(model, "validation")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loss_is_the_mean_cross_entropy() -> None:
    batch = DIGITS.batch(0, 0, 32)
    model = DIGITS.build_model()
    expected = -(model(batch.pixels).log_softmax(1)[torch.arange(32), batch.labels]).mean()
    torch.testing.assert_close(DIGITS.loss(model, batch, 0.0), expected)
    assert DIGITS.loss(model, batch, 0.1) != expected
