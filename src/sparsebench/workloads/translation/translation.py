"""Translation as a workload: batches of tokens, loss, decoding and scores of a corpus."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.placement import device_of
from sparsebench.workloads.translation.batches import TokenBatch, TokenBatches
from sparsebench.workloads.translation.corpus import Corpus, Sentences
from sparsebench.workloads.translation.decoding import beam_search, greedy
from sparsebench.workloads.translation.scores import SCORES
from sparsebench.workloads.translation.tokens import PADDING
from sparsebench.workloads.translation.transformer import Attention, Size, Transformer
from sparsebench.workloads.workload import DataNote, ExampleInput, HeadsOfWeight, Recipe, Split

__all__ = ["Translation"]

# Sentences of an evaluation are translated together, so many source tokens at once, padding counted.
EVALUATION_TOKENS = 4096


@dataclass(frozen=True)
class Translation:
    """A Workload: a Transformer and a parallel corpus.

    A batch is a number of tokens, those of the longer side, padding counted; a training example, the N of penalties, is a pair
    of sentences. What one example costs, where costs are counted, is what one source and one target token cost.

    Attributes:
        name: As studies name it.
        summary: One line.
        code_revision: Raised when network, batches or scores change.
        recipe: The reference recipe.
        load: Gives the corpus; called often, so it keeps what it has read.
        size: Of the Transformer.
        dropout: Of the Transformer, in [0, 1).
        language: Of the translations, by its two-letter code.
        scores: Names of the scores, the primary one first; see `SCORES`.
        beams: Hypotheses of the beam search by split; 1 decodes greedily. Validation scores choose settings and draw the curve.
        extra_length: Translations have at most so many tokens more than their source.
    """

    name: str
    summary: str
    code_revision: int
    recipe: Recipe
    load: Callable[[], Corpus]
    size: Size
    dropout: float
    language: str
    scores: tuple[str, ...]
    beams: Mapping[Split, int]
    extra_length: int = 50

    @property
    def metric(self) -> str:
        """The first of the scores."""
        return self.scores[0]

    @property
    def revision(self) -> int:
        """Stands for code, data and vocabulary: other files under the same name, or another release of Babel, are other data."""
        return self.code_revision * 2**48 + self.load().fingerprint

    @property
    def training_examples(self) -> int:
        """N, the number of training pairs that the filters keep."""
        return self.load().counts.kept

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps of one pass over the training pairs.

        Raises:
            SparsebenchError: The longest training sentence has more tokens than a batch.
        """
        corpus = self.load()
        longest = int(max(corpus.source.lengths.max(), corpus.target.lengths.max()))
        if batch_size < longest:
            raise SparsebenchError(
                f"batch_size={batch_size}: tokens; expected at least {longest}, the longest training sentence of {self.name}"
            )
        return len(_batches(self.load, batch_size))

    def signatures(self) -> dict[str, str]:
        """What exactly the scores measure."""
        return {name: SCORES[name].signature() for name in self.scores}

    def data_notes(self) -> list[DataNote]:
        """Training pairs left out, evaluation text that training would have left out, and the size of the vocabulary."""
        corpus = self.load()
        size, asked = corpus.vocabulary.size, corpus.vocabulary_size
        notes = [DataNote("training pairs", str(corpus.counts), corpus.counts.kept < corpus.counts.read)]
        notes += [DataNote(f"{split} text", str(held), held.remarkable) for split, held in corpus.evaluation.items()]
        return [
            *notes,
            DataNote("vocabulary", f"{size:,} of {asked:,} tokens", remarkable=False),
        ]  # it was said when it was learned

    def build_model(self) -> nn.Module:
        """A new Transformer, its weights drawn from torch's default generator."""
        vocabulary = self.load().vocabulary
        return Transformer(vocabulary.size, self.size, self.dropout, vocabulary.fingerprint)

    def attention_heads(self, model: nn.Module) -> dict[str, HeadsOfWeight]:
        """Heads share the rows of queries, keys and values, and the columns of outputs."""
        return {
            f"{name}.{part}.weight": HeadsOfWeight(dimension, module.heads)
            for name, module in model.named_modules()
            if isinstance(module, Attention)
            for part, dimension in (("query", 0), ("key", 0), ("value", 0), ("output", 1))
        }

    def batch(self, seed: int, step: int, batch_size: int) -> TokenBatch:
        """The training batch of a step: pairs of about equal length, at most `batch_size` tokens on the longer side.

        Sentences longer than a batch are cut to it, so that a batch of one token is one source and one target token.
        """
        return _batches(self.load, batch_size).batch(seed, step)

    def loss(self, model: nn.Module, batch: TokenBatch, label_smoothing: float) -> torch.Tensor:
        """Cross entropy, averaged over the target tokens.

        Label smoothing is torch's: the mass is spread over all tokens, the right one included. (Vaswani et al. 2017 and
        tensor2tensor leave the right one out, which is torch's with a mass larger by 1 / vocabulary.)
        """
        return _cross_entropy(model, batch, label_smoothing, "mean")

    def terms(self, batch: TokenBatch) -> int:
        """Target tokens, end symbols included."""
        return int((batch.expected != PADDING).sum())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """The scores, and the mean cross entropy of the reference's tokens, end symbols included."""
        corpus = self.load()
        sentences: Sentences = getattr(corpus, split)
        translations = [""] * len(sentences.sources)
        loss, tokens = 0.0, 0
        was_training, device = model.training, device_of(model)
        model.eval()
        try:
            for chosen, on_cpu in _evaluation_batches(corpus, sentences):
                batch = TokenBatch(*(tokens_of.to(device) for tokens_of in on_cpu))
                loss += float(_cross_entropy(model, batch, 0.0, "sum"))
                tokens += int((batch.expected != PADDING).sum())
                for index, translation in zip(chosen, corpus.vocabulary.decode(self.decode(model, batch, split)), strict=True):
                    translations[index] = translation
        finally:
            model.train(was_training)
        scores = {name: SCORES[name].of(translations, sentences.references, self.language) for name in self.scores}
        return scores | {"loss": loss / tokens}

    def example_input(self, examples: int) -> ExampleInput:
        """Validation sentences and their references, as `forward` reads them."""
        corpus = self.load()
        chosen = [index % len(corpus.validation.sources) for index in range(examples)]
        pairs = (corpus.validation.sources, corpus.validation.references)
        encoded = (corpus.vocabulary.encode([sentences[index] for index in chosen]) for sentences in pairs)
        batch = TokenBatch.of(*map(_rows, encoded))
        source, target = ({0: "sentences", 1: f"{side}_positions"} for side in ("source", "target"))
        return ExampleInput((batch.source, batch.target), {"source": source, "target": target})

    def use(self, model: nn.Module, example: ExampleInput) -> list[list[int]]:
        """Translations of the source sentences, by the beam of the test split."""
        return self._decode(model, example.arguments[0], "test")

    def decode(self, model: nn.Module, batch: TokenBatch, split: Split) -> list[list[int]]:
        """Translations of a batch's source sentences, by the beam of a split, the model in eval mode."""
        return self._decode(model, batch.source, split)

    def _decode(self, model: nn.Module, source: torch.Tensor, split: Split) -> list[list[int]]:
        assert isinstance(model, Transformer)
        most = source.shape[1] + self.extra_length
        if self.beams[split] == 1:
            return greedy(model, source, most)
        return beam_search(model, source, most, self.beams[split])


def _cross_entropy(model: nn.Module, batch: TokenBatch, label_smoothing: float, reduction: str) -> torch.Tensor:
    logits = model(batch.source, batch.target)
    return F.cross_entropy(
        logits.flatten(0, 1),
        batch.expected.flatten(),
        ignore_index=PADDING,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


@functools.lru_cache(maxsize=4)
def _batches(load: Callable[[], Corpus], batch_size: int) -> TokenBatches:
    return TokenBatches(load(), batch_size)


def _evaluation_batches(corpus: Corpus, sentences: Sentences) -> Iterator[tuple[list[int], TokenBatch]]:
    """Sentences of about equal length together, with their places."""
    sources, references = corpus.vocabulary.encode(sentences.sources), corpus.vocabulary.encode(sentences.references)
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * len(sources[order[end]]) <= EVALUATION_TOKENS:
            end += 1
        chosen = order[begin:end]
        yield chosen, TokenBatch.of(_rows([sources[i] for i in chosen]), _rows([references[i] for i in chosen]))
        begin = end


def _rows(encoded: list[list[int]]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    rows = np.full((len(encoded), max(map(len, encoded))), PADDING, dtype=np.int64)
    for row, tokens in zip(rows, encoded, strict=True):
        row[: len(tokens)] = tokens
    return rows
