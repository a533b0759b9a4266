"""The callback for transformers.Trainer, with the real package on a tiny model."""

import shutil

import pytest
import torch
from integration_methods import METHODS, STOCHASTIC
from torch import nn

import sparsebench
from sparsebench import SparsebenchError

transformers = pytest.importorskip("transformers", reason="needs pip install 'sparsebench[transformers]'")
pytest.importorskip("accelerate", reason="needs pip install 'sparsebench[transformers]'")

from sparsebench.integrations.transformers import SparsebenchCallback  # noqa: E402

every_method = pytest.mark.parametrize("method", METHODS)


class Examples(torch.utils.data.Dataset):
    """Sentences of random words, and whether they hold more small words than large ones."""

    def __init__(self, count=48):
        self.words = torch.randint(32, (count, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        words = self.words[index]
        return {"input_ids": words, "labels": int(words.float().mean() < 16)}


def tiny_bert():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
        )
    )


def arguments(folder, **changes):
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 10,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        | changes
    )


def trainer_for(method, folder, model=None, callbacks=None, optimizers=(None, None), **changes):
    model = tiny_bert() if model is None else model
    sparsifier = METHODS[method]() if isinstance(method, str) else method
    trainer = transformers.Trainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=Examples(),
        eval_dataset=Examples(12),
        callbacks=[SparsebenchCallback(sparsifier)] if callbacks is None else callbacks,
        optimizers=optimizers,
    )
    return trainer, sparsifier


def dropped_are_zero(model, sparsifier):
    parameters = dict(model.named_parameters())
    return all(bool((parameters[name].detach()[~mask] == 0).all()) for name, mask in sparsifier.masks().items())


class PenaltyInTheLoss(transformers.Trainer):
    """The oracle: a Trainer whose loss holds the penalty."""

    sparsifier = None

    def compute_loss(self, model, inputs, **kwargs):
        return super().compute_loss(model, inputs, **kwargs) + self.sparsifier.penalty()


@every_method
def test_peers_row_20_one_line_makes_the_model_of_a_trainer_sparse(method, tmp_path):
    trainer, sparsifier = trainer_for(method, tmp_path)
    trainer.train()
    assert sparsifier.step == 10
    logged = [row["sparsity"] for row in trainer.state.log_history]
    assert logged[-1] == sparsifier.sparsity
    if method not in STOCHASTIC:
        assert sparsifier.sparsity == pytest.approx(0.8, abs=0.005)
        assert dropped_are_zero(trainer.model, sparsifier)
        assert (logged[0] == 0.0) == (method not in ("rigl", "snfs")), "these are sparse from the first step on"
        assert logged == sorted(logged)
    model = sparsifier.finalize()
    assert model is trainer.model
    trainer.save_model(tmp_path / "final")
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "final")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name])


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("method", STOCHASTIC)
def test_the_penalty_is_as_if_in_the_loss(method, accumulation, tmp_path):
    changes = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.0, "max_steps": 5, "lr_scheduler_type": "constant"}
    trainer, sparsifier = trainer_for(method, tmp_path, **changes)
    # The mean over accumulated batches, as the loss of most models; for some the Trainer takes the sum.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    expected, other = tiny_bert(), METHODS[method]()
    other.prepare(expected)
    oracle = PenaltyInTheLoss(model=expected, args=arguments(tmp_path, **changes), train_dataset=Examples())
    oracle.sparsifier, oracle.model_accepts_loss_kwargs = other, False
    oracle.create_optimizer()
    other.attach(oracle.optimizer)
    oracle.train()
    assert sparsifier.step == other.step == 5
    for (name, parameter), wanted in zip(trainer.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
    plain = tiny_bert()
    METHODS[method]().prepare(plain)
    without = transformers.Trainer(model=plain, args=arguments(tmp_path, **changes), train_dataset=Examples())
    without.model_accepts_loss_kwargs = False
    without.train()
    difference = max(float((p - q).detach().abs().max()) for p, q in zip(plain.parameters(), expected.parameters(), strict=True))
    assert difference > 1e-3, "the penalty is too weak for this test to see it"


def test_clipping_bounds_the_gradient_of_the_loss_alone(tmp_path):
    """With the loss's gradient clipped to almost nothing the penalty moves log alpha still."""
    sparsifier = sparsebench.l0_regularization(penalty=0.01)
    model = tiny_bert()
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer, _ = trainer_for(
        sparsifier,
        tmp_path,
        model=model,
        optimizers=(optimizer, None),
        max_grad_norm=1e-12,
        max_steps=1,
        lr_scheduler_type="constant",
    )
    auxiliary = [p for name, p in model.named_parameters() if name.endswith("log_alpha")]
    before = [p.detach().clone() for p in auxiliary]
    gradients = torch.autograd.grad(sparsifier.penalty(), auxiliary)
    trainer.train()
    for parameter, old, gradient in zip(auxiliary, before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - gradient)


@pytest.mark.parametrize(
    ("method", "path"), [*((method, "given") for method in METHODS), ("magnitude", "last"), ("magnitude", "moved")]
)
def test_peers_row_7_a_resumed_training_goes_on_bit_for_bit(method, path, tmp_path):
    """PEERS 4 and 7: masks, schedule and counters are in the Trainer's own checkpoint, wherever it lies."""
    whole, sparsifier = trainer_for(method, tmp_path / "whole", save_strategy="steps", save_steps=4)
    whole.train()
    resumed, other = trainer_for(method, tmp_path / "resumed")
    source = tmp_path / "whole" / "checkpoint-4"
    if path == "given":
        resumed.train(resume_from_checkpoint=str(source))
    elif path == "last":
        shutil.copytree(source, tmp_path / "resumed" / "checkpoint-4")
        resumed.train(resume_from_checkpoint=True)
    else:
        shutil.move(source, tmp_path / "elsewhere")
        resumed.train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    assert other.step == sparsifier.step == 10
    for (name, parameter), wanted in zip(resumed.model.named_parameters(), whole.model.named_parameters(), strict=True):
        assert torch.equal(parameter, wanted[1]), name
    for name, mask in sparsifier.masks().items():
        assert torch.equal(other.masks()[name], mask)
    assert resumed.state.log_history[-2]["sparsity"] == whole.state.log_history[-2]["sparsity"]


class Words(Examples):
    """The same sentences, to be repeated word by word."""

    def __getitem__(self, index):
        return {"input_ids": self.words[index], "labels": self.words[index]}


def tiny_language_model():
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


@every_method
def test_peers_row_21_a_tied_weight_is_saved_and_resumed_once(method, tmp_path):
    """The auxiliary parameter of tied embeddings has two names as they do, and transformers has to be told."""
    ends = []
    for source in (None, str(tmp_path / "checkpoint-4")):
        model, sparsifier = tiny_language_model(), METHODS[method]()
        trainer = transformers.Trainer(
            model=model,
            args=arguments(tmp_path if source is None else tmp_path / "resumed", save_strategy="steps", save_steps=4),
            train_dataset=Words(),
            callbacks=[SparsebenchCallback(sparsifier)],
        )
        trainer.train(resume_from_checkpoint=source)
        ends.append((model, sparsifier))
    (whole, sparsifier), (resumed, other) = ends
    for (name, parameter), wanted in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, wanted), name
    assert other.step == sparsifier.step == 10
    assert "_tied_weights_keys" not in vars(resumed)
    model = other.finalize()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path / "final")
    model.resize_token_embeddings(40)
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path / "final")
    for name, parameter in whole.named_parameters():
        if method not in STOCHASTIC:
            assert torch.equal(dict(loaded.named_parameters())[name], parameter), name


def test_a_resumed_training_saves_the_state_it_has_now(tmp_path):
    """The state that was loaded must not be saved in place of the current one."""
    first, _ = trainer_for("magnitude", tmp_path, save_strategy="steps", save_steps=4)
    first.train()
    second, _ = trainer_for("magnitude", tmp_path, save_strategy="steps", save_steps=4)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    saved = torch.load(tmp_path / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["sparsebench"]["step"] == 8
    assert "sparsebench" not in second.optimizer.param_groups[0]


def test_a_checkpoint_without_masks_is_refused(tmp_path):
    dense = transformers.Trainer(
        model=tiny_bert(), args=arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=Examples()
    )
    dense.train()
    trainer, _ = trainer_for("magnitude", tmp_path)
    with pytest.raises(SparsebenchError, match="the checkpoint holds no state of a sparsifier"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    first, _ = trainer_for("magnitude", tmp_path, save_strategy="steps", save_steps=4)
    first.train()
    trainer, _ = trainer_for("random", tmp_path)
    with pytest.raises(SparsebenchError, match="belongs to another model, method or schedule: score"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_best_model_comes_with_its_masks(tmp_path):
    """Otherwise the last masks would be said to hold for weights that they do not belong to."""
    trainer, sparsifier = trainer_for(
        "magnitude",
        tmp_path,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="step_number",
        greater_is_better=False,
    )
    trainer.compute_metrics = lambda _: {"step_number": abs(trainer.state.global_step - 4)}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert sparsifier.step == 4
    assert 0.0 < sparsifier.sparsity < 0.8
    assert dropped_are_zero(trainer.model, sparsifier)
    with pytest.warns(UserWarning, match=r"^finalize\(\) after step 4 of a schedule that arrives at step 9"):
        sparsifier.finalize()


def test_the_best_model_without_its_masks_is_refused_before_training(tmp_path):
    with pytest.raises(SparsebenchError, match="set save_only_model=False"):
        trainer_for(
            "magnitude", tmp_path, save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True, save_only_model=True
        )


def test_the_user_may_make_the_optimizer(tmp_path):
    model, sparsifier = tiny_bert(), METHODS["l0"]()
    sparsifier.prepare(model)
    optimizer = torch.optim.AdamW(sparsifier.parameter_groups(lr=0.01, auxiliary_lr_scale=5.0))
    trainer, _ = trainer_for(sparsifier, tmp_path, model=model, optimizers=(optimizer, None))
    trainer.train()
    assert sparsifier.step == 10
    assert trainer.optimizer.optimizer is optimizer


def test_an_optimizer_made_before_prepare_is_refused(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    trainer, _ = trainer_for("l0", tmp_path, model=model, optimizers=(optimizer, None))
    with pytest.raises(SparsebenchError, match=r"does not hold '.*log_alpha' and \d+ more: make it after prepare"):
        trainer.train()


def test_a_model_made_by_the_trainer_is_refused(tmp_path):
    trainer = transformers.Trainer(
        model_init=tiny_bert,
        args=arguments(tmp_path),
        train_dataset=Examples(),
        callbacks=[SparsebenchCallback(METHODS["magnitude"]())],
    )
    with pytest.raises(SparsebenchError, match="use model=, not model_init="):
        trainer.train()


def test_a_callback_added_too_late_is_refused(tmp_path):
    trainer, _ = trainer_for("magnitude", tmp_path, callbacks=[])
    trainer.add_callback(SparsebenchCallback(METHODS["magnitude"]()))
    with pytest.raises(SparsebenchError, match=r"hand it over as Trainer\(\.\.\., callbacks="):
        trainer.train()


class Deaf(torch.optim.SGD):
    """An optimizer that calls no hooks, as DeepSpeed's."""

    def step(self, closure=None):
        """torch gives hooks to every step() that is not marked as having them."""

    step.hooked = True


def test_an_optimizer_that_calls_no_hooks_is_refused_at_its_first_step(tmp_path):
    model = tiny_bert()
    trainer, _ = trainer_for("magnitude", tmp_path, model=model, optimizers=(Deaf(model.parameters(), lr=0.1), None))
    with pytest.raises(SparsebenchError, match=r"\(Deaf\) made a step without calling its hooks"):
        trainer.train()


def test_peers_row_6_frozen_masks_hold_through_fine_tuning(tmp_path):
    model = tiny_bert()
    layer = model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        layer.weight[:, :4] = 0.0
    trainer, sparsifier = trainer_for(sparsebench.freeze_masks(model), tmp_path, model=model, weight_decay=0.1)
    trainer.train()
    assert int((layer.weight == 0).sum()) == 4 * 16
    assert dropped_are_zero(model, sparsifier)


def test_training_goes_on_in_a_second_call(tmp_path):
    trainer, sparsifier = trainer_for("l0", tmp_path, max_steps=3)
    trainer.train()
    trainer.train()
    assert sparsifier.step == 6
    assert len(trainer.optimizer.optimizer._optimizer_state_dict_post_hooks) == 1


def test_layers_stay_converted_for_stochastic_methods_until_finalize(tmp_path):
    trainer, sparsifier = trainer_for("variational-dropout", tmp_path, max_steps=8)
    trainer.train()
    for point in sparsifier.points():
        with point:
            assert trainer.evaluate()["eval_loss"] > 0
    assert {type(module) for module in sparsifier.finalize().modules() if "Stochastic" in type(module).__name__} == set()
    assert isinstance(trainer.model.classifier, nn.Linear)
