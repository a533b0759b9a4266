from __future__ import annotations

import functools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_toys import PREPARATION, TOY, ToyTexts, prepared, toy_workload, write_folder
from torch import nn

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from sparsebench.errors import SparsebenchError
from sparsebench.storage import load_compressed
from sparsebench.training.config import resolve
from sparsebench.training.cost import report_of_example
from sparsebench.training.run import run_folder, train
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.parallel_text import parallel_text
from sparsebench.workloads.translation.scores import SCORES, exact_match, tokenize_as_the_paper
from sparsebench.workloads.translation.tokens import END, PADDING
from sparsebench.workloads.translation.translation import Translation


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Translation:
    folder = tmp_path_factory.mktemp("cache")

    @functools.cache
    def load() -> Corpus:
        return prepared(folder)

    return toy_workload(load)


class Oracle(nn.Module):
    """Stands for a network: its loss is that of even odds, its decoder is not asked."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.was_training = vocabulary, False

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.was_training |= self.training
        return torch.zeros(*target.shape, self.vocabulary)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_puts_translations_back_into_the_order_of_the_text(
    toy: Translation, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that answers rightly, but for one sentence."""
    corpus = toy.load()
    answers = {
        tuple(corpus.vocabulary.encode([one])[0]): corpus.vocabulary.encode([other])[0][:-1] for one, other in getattr(TOY, split)
    }
    wrong = getattr(TOY, split)[3][0]
    answers[tuple(corpus.vocabulary.encode([wrong])[0])] = []

    def decode(self: Translation, model: nn.Module, batch: Any, asked: str) -> list[list[int]]:
        assert asked == split
        return [answers[tuple(token for token in row if token != PADDING)] for row in batch.source.tolist()]

    monkeypatch.setattr(Translation, "decode", decode)
    monkeypatch.setattr("sparsebench.workloads.translation.translation.EVALUATION_TOKENS", 40)
    model = Oracle(corpus.vocabulary.size).train()
    metrics = toy.evaluate(model, split)
    count = len(getattr(TOY, split))
    assert metrics["exact_match"] == pytest.approx(100 * (count - 1) / count)
    assert metrics["loss"] == pytest.approx(math.log(corpus.vocabulary.size), rel=1e-5)
    assert 80 < metrics["sacrebleu"] < 100
    assert model.training
    assert not model.was_training
    assert set(metrics) == {"sacrebleu", "exact_match", "chrf", "loss"}
    assert toy.metric == "sacrebleu"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_real_target_tokens_with_torchs_label_smoothing(toy: Translation, smoothing: float) -> None:
    torch.manual_seed(0)
    batches = (toy.batch(0, step, 400) for step in range(100))
    model, batch = toy.build_model(), next(batch for batch in batches if (batch.expected == PADDING).any())
    log_p = model(batch.source, batch.target).log_softmax(-1)
    losses = []
    for row, expected in zip(log_p, batch.expected, strict=True):
        for position, token in enumerate(expected):
            if token != PADDING:
                losses.append(-(1 - smoothing) * row[position, token] - smoothing * row[position].mean())
    torch.testing.assert_close(toy.loss(model, batch, smoothing), torch.stack(losses).mean())
    assert len(losses) < batch.expected.numel()


def test_cost_is_that_of_one_source_and_one_target_token(toy: Translation) -> None:
    """PEERS 2: what the recipe's batch counts, so that a training costs steps x tokens x this."""
    model = toy.build_model()
    rows = {row.name: row for row in report_of_example(toy, model)}
    assert all(row.multiply_adds == row.weights for row in rows.values())
    assert rows["embedding.weight"].multiply_adds == 60 * 16  # as the softmax; the two look-ups are free


def test_cost_of_a_training_is_coherent(toy: Translation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKLOADS._entries, "toy", toy)
    for method, parameters, relative in [("dense", {}, 1.0), ("static", {"sparsity": 0.75}, 0.25)]:
        config = resolve("toy", method, parameters, {"steps": 3})
        record = train(config, run_folder(tmp_path, config))
        assert record.dense_training_multiply_adds == 3 * 3 * 256 * record.dense_multiply_adds
        assert record.training_multiply_adds == pytest.approx(relative * record.dense_training_multiply_adds, rel=0.01)
        assert record.points[0].multiply_adds == pytest.approx(relative * record.dense_multiply_adds, rel=0.01)
        assert record.environment["sacrebleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
        assert record.environment["exact_match"] == "per cent of equal sentences"


@pytest.mark.parametrize("method", ["magnitude-global", "variational-dropout"])
def test_zeros_of_every_attention_head_are_recorded(
    toy: Translation, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved network's weights, counted where `scaled_dot_product_attention` reads what a head's rows made."""
    monkeypatch.setitem(WORKLOADS._entries, "toy", toy)
    parameters = {"sparsity": 0.7} if method == "magnitude-global" else {"penalty": 1.0, "thresholds": [-6.0]}
    config = resolve("toy", method, parameters, {"steps": 20})
    folder = run_folder(tmp_path, config)
    rows = {row.layer: row for row in train(config, folder).points[0].layers}
    weights = load_compressed(folder.model_path)
    attentions = ("encoder.0.attention", "decoder.0.attention", "decoder.0.source_attention")
    shared = {f"{attention}.{part}.weight" for attention in attentions for part in ("query", "key", "value", "output")}
    assert {name for name, row in rows.items() if row.head_zeros} == shared
    uneven = 0
    for name in shared:
        by_row, of_head = weights[name] if not name.endswith("output.weight") else weights[name].T, [0, 0]
        for feature in range(16):
            of_head[feature // 8] += int((by_row[feature] == 0).sum())
        assert rows[name].head_zeros == tuple(of_head)
        assert sum(of_head) == rows[name].zeros
        uneven += of_head[0] != of_head[1]
    assert uneven


def test_steps_and_epochs_count_batches_of_tokens(toy: Translation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKLOADS._entries, "toy", toy)
    steps = toy.steps_per_epoch(256)
    assert toy.training_examples == 400
    assert 400 * 4 / 256 < steps < 30
    assert resolve("toy", "dense", {}, {"steps": "3 epochs"}).recipe.steps == 3 * steps
    assert resolve("toy", "dense", {}, {"batch_size": 100_000}).recipe.batch_size == 100_000  # more than there are pairs
    longest = int(max(toy.load().source.lengths.max(), toy.load().target.lengths.max()))
    with pytest.raises(SparsebenchError) as caught:
        resolve("toy", "dense", {}, {"batch_size": longest - 1})
    assert str(caught.value) == (
        f"batch_size={longest - 1}: tokens; expected at least {longest}, the longest training sentence of toy"
    )


def test_network_learns_words(toy: Translation) -> None:
    torch.manual_seed(0)
    model = toy.build_model()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(400):
        optimizer.zero_grad()
        toy.loss(model, toy.batch(0, step, 512), 0.0).backward()
        optimizer.step()
    greedily, by_beam = toy.evaluate(model, "validation"), toy.evaluate(model, "test")
    assert greedily["exact_match"] > 60
    assert by_beam["exact_match"] > 60
    assert by_beam["loss"] < 0.3


def test_parallel_text_is_a_workload_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "words")
    there, back = (WORKLOADS.get(f"parallel:{folder}:{direction}") for direction in ("en-de", "de-en"))
    assert there is WORKLOADS.get(f"parallel:{folder}:en-de")
    assert there.name == f"parallel:{folder}:en-de"
    assert there.training_examples == 400
    assert there.revision != back.revision
    config = resolve(there.name, "dense", {}, {})
    assert config.workload_revision == there.revision
    corpus: Corpus = back.load()  # type: ignore[attr-defined]
    assert (corpus.test.sources[0], corpus.test.references[0]) == TOY.test[0][::-1]


def test_other_text_under_the_same_path_is_another_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEERS 23: old results are not taken for those of new text."""
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "words")
    before = parallel_text(f"{folder}:en-de").revision
    with (folder / "train.en").open("a") as file:
        file.write("one\n")
    with (folder / "train.de").open("a") as file:
        file.write("eins\n")
    parallel_text.cache_clear()
    assert parallel_text(f"{folder}:en-de").revision != before


def test_mistakes_in_a_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SparsebenchError, match=r"^parallel:/nowhere:en-de: /nowhere is no folder and no file, and there are no"):
        WORKLOADS.get("parallel:/nowhere:en-de")
    write_folder(tmp_path)
    with pytest.raises(SparsebenchError, match=r"has no 'train': expected train\.source and train\.target, train\.tsv"):
        resolve(f"parallel:{tmp_path}", "dense", {})
    with pytest.raises(SparsebenchError, match=r"^unknown workload 'paralel:/data'.*; known: digits, "):
        WORKLOADS.get("paralel:/data")


def test_multi30k_is_found_in_the_data_folder_then_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.workloads import data_folders

    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    files = {"train.en": "http://nowhere/train.en"}
    asked: list[str] = []

    def download(name: str, downloads: object, folder: Path, provide: str) -> None:
        asked.append(name)
        folder.mkdir(parents=True)

    monkeypatch.setattr(data_folders, "_download", download)
    cached = tmp_path / "cache" / "data" / "multi30k"
    assert data_folders.data_folder("multi30k", files) == cached
    assert data_folders.data_folder("multi30k", files) == cached
    assert asked == ["multi30k"]
    (tmp_path / "data" / "multi30k").mkdir()
    assert data_folders.data_folder("multi30k", files) == tmp_path / "data" / "multi30k"


def test_download_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.workloads import data_folders

    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "train.en").write_text("one\n")
    here, absent = (tmp_path / "train.en").as_uri(), (tmp_path / "train.de").as_uri()
    with pytest.raises(SparsebenchError) as caught:
        data_folders.data_folder("words", {"train.en": here, "train.de": absent})
    folder = tmp_path / "cache" / "data" / "words"
    assert str(caught.value).startswith("words is not here and cannot be downloaded (")
    assert str(caught.value).endswith(f": put its files (train.en, train.de) into $SPARSEBENCH_DATA/words or {folder}")
    assert list(folder.parent.iterdir()) == []
    assert data_folders.data_folder("words", {"train.en": here}) == folder
    assert (folder / "train.en").read_text() == "one\n"


def test_multi30k_may_be_given_by_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.workloads.translation import named_corpora

    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "anything"))
    write_folder(tmp_path / "anything")
    load = named_corpora._load("words", {}, ("test",), PREPARATION)
    assert load().counts.kept == 400
    (tmp_path / "anything" / "test.de").unlink()
    load.cache_clear()  # type: ignore[attr-defined]
    with pytest.raises(SparsebenchError, match=r"^words is not here: put its files"):
        load()


def test_counts_are_in_the_record_and_told_at_every_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ToyTexts([*TOY.training, ("", "leer"), ("one " * 99, "eins " * 99)], [*TOY.validation, ("two", "")], TOY.test)
    workload = toy_workload(functools.cache(lambda: prepared(tmp_path / "cache", texts)))
    monkeypatch.setitem(WORKLOADS._entries, "toy", workload)
    pairs = "400 of 402 kept; left out: 1 with an empty side, 1 too long, 0 too unequal in length"
    kept = "all 21 sentences kept; among them 1 with an empty side, 0 longer than 64 tokens"
    for seed in (0, 1):
        caplog.clear()
        config = resolve("toy", "dense", {}, {"steps": 2}, seed)
        with caplog.at_level("WARNING", "sparsebench"):
            record = train(config, run_folder(tmp_path, config))
        assert caplog.messages == [f"toy, training pairs: {pairs}", f"toy, validation text: {kept}"]
        assert record.environment["training pairs"] == pairs
        assert record.environment["validation text"] == kept
        assert record.environment["test text"].startswith("all 30 sentences kept; among them 0 with")
        assert record.environment["vocabulary"] == "60 of 60 tokens"


REFERENCES = ["the cat sat on the mat today", "a well-known dog runs fast , very fast", "it rains"]
TRANSLATIONS = ["the cat sat on the mat today", "a well-known dog walks fast , so fast", "it rains here"]


def bleu(translations: list[list[str]], references: list[list[str]]) -> float:
    """Papineni et al. 2002, without smoothing: what multi-bleu computes."""
    logs = 0.0
    for order in range(1, 5):
        right = total = 0
        for translation, reference in zip(translations, references, strict=True):
            grams, known = (
                Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1)) for words in (translation, reference)
            )
            right += sum((grams & known).values())
            total += sum(grams.values())
        logs += math.log(right / total) / 4
    ours, theirs = (sum(map(len, texts)) for texts in (translations, references))
    return 100 * math.exp(logs + min(0.0, 1 - theirs / ours))


def test_tokenized_bleu_is_multi_bleu_on_moses_tokens_with_split_compounds() -> None:
    pytest.importorskip("sacremoses")
    tokens = [tokenize_as_the_paper(texts, "de") for texts in (TRANSLATIONS, REFERENCES)]
    assert tokens[1][1] == "a well ##AT##-##AT## known dog runs fast , very fast"
    assert tokenize_as_the_paper(['Er sagte: "Ja."'], "de") == ["Er sagte : &quot; Ja . &quot;"]
    expected = bleu(*([text.split() for text in texts] for texts in tokens))
    assert SCORES["tokenized_bleu"].of(TRANSLATIONS, REFERENCES, "de") == pytest.approx(expected)
    assert "tok:none|smooth:none" in SCORES["tokenized_bleu"].signature()


def test_sacrebleu_is_bleu_where_its_tokenizer_changes_nothing() -> None:
    plain = [[text.replace("-", "").split() for text in texts] for texts in (TRANSLATIONS, REFERENCES)]
    texts = [[" ".join(words) for words in side] for side in plain]
    assert SCORES["sacrebleu"].of(*texts, "de") == pytest.approx(bleu(*plain))


def test_scores_of_right_and_wrong_translations() -> None:
    for name, score in SCORES.items():
        assert score.of(REFERENCES, REFERENCES, "de") == pytest.approx(100.0), name
        assert score.of(["x"] * 3, REFERENCES, "de") == pytest.approx(0.0, abs=1.0), name
    assert exact_match(TRANSLATIONS, REFERENCES) == pytest.approx(100 / 3)


def test_translations_end_some_tokens_after_their_source(toy: Translation) -> None:
    model = toy.build_model()
    with torch.no_grad():  # the end symbol is never chosen
        model.decoder_norm.bias.copy_(-100.0 * model.embedding.weight[END])
    batch = toy.batch(0, 0, 128)
    found = toy.decode(model.eval(), batch, "validation")
    assert {len(tokens) for tokens in found} == {batch.source.shape[1] + 50}
