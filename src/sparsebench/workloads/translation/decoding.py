"""Decoding: greedy, and beam search with a length normalisation and an exact stopping rule."""

from __future__ import annotations

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.keys_values import DecoderCache
from sparsebench.workloads.translation.tokens import BEGIN, END, PADDING
from sparsebench.workloads.translation.transformer import Transformer

__all__ = ["LENGTH_EXPONENT", "beam_search", "greedy", "length_penalty"]

LENGTH_EXPONENT = 0.6
CHUNK = 64


def length_penalty(length: int, exponent: float = LENGTH_EXPONENT) -> float:
    """What a log probability is divided by: `((5 + length) / 6) ** exponent`, the end symbol counted.

    Wu et al. 2016 (GNMT, arXiv 1609.08144, eq. 14), without their coverage term.

    Example:
        >>> length_penalty(1), length_penalty(7, 1.0)
        (1.0, 2.0)
    """
    return float(((5.0 + length) / 6.0) ** exponent)


@torch.no_grad()
def greedy(model: Transformer, source: torch.Tensor, max_length: int) -> list[list[int]]:
    """The most probable token at every position, up to the end symbol.

    Args:
        model: The network, in eval mode.
        source: int64 [sentences, positions], padded at the end.
        max_length: Most tokens of a translation, the end symbol counted.

    Returns:
        For each sentence its tokens, without the end symbol.
    """
    memory = model.encode(source).contiguous()
    translations: list[list[int]] = [[] for _ in range(len(source))]
    rows = torch.arange(len(source), device=source.device)
    last = torch.full((len(source), 1), BEGIN, device=source.device)
    cache: DecoderCache | None = None
    parents: torch.Tensor | None = None
    for _ in range(max_length):
        logits, cache = model.decode(last, memory, cache, parents)
        tokens = _allowed(logits[:, -1]).argmax(-1)
        going = (tokens != END).nonzero().squeeze(1)
        for row, token in zip(rows[going].tolist(), tokens[going].tolist(), strict=True):
            translations[row].append(token)
        if not len(going):
            break
        parents = None
        if len(going) < len(rows):  # what is finished costs nothing any more
            rows, memory, parents = rows[going], memory.chosen(going), going
        last = tokens[going].unsqueeze(1)
    return translations


@torch.no_grad()
def beam_search(
    model: Transformer, source: torch.Tensor, max_length: int, beam: int = 4, exponent: float = LENGTH_EXPONENT
) -> list[list[int]]:
    """The best translation that a beam finds, by `log p / length_penalty`.

    At every position the `beam` best unfinished hypotheses live on, by log p; those of the `2 * beam` best continuations that
    end are finished. A sentence stops when the best finished hypothesis cannot be beaten any more: when its score is at least the
    highest log p of an unfinished one divided by the penalty of `max_length`, which no continuation can exceed. Nothing is lost
    by stopping there, so the result is that of a search to `max_length`; with a beam as wide as there are hypotheses, it is the
    best of all translations. A sentence without a finished hypothesis gets its most probable unfinished one.

    Args:
        model: The network, in eval mode.
        source: int64 [sentences, positions], padded at the end.
        max_length: Most tokens of a translation, the end symbol counted.
        beam: Hypotheses kept, at least 1.
        exponent: Of the length penalty, at least 0.

    Returns:
        For each sentence its tokens, without the end symbol.

    Raises:
        SparsebenchError: `beam` or `exponent` is out of range.
    """
    if beam < 1:
        raise SparsebenchError(f"beam={beam}: expected at least 1")
    if not exponent >= 0.0:
        raise SparsebenchError(f"exponent={exponent}: expected at least 0")
    sentences = len(source)
    memory = model.encode(source).contiguous()
    best_tokens: list[list[int]] = [[] for _ in range(sentences)]
    rows = torch.arange(sentences, device=source.device)  # the sentences that still go on
    best_score = torch.full((sentences,), float("-inf"), device=source.device)  # of their finished hypotheses
    # At first there is one hypothesis; the other places of the beam are empty.
    log_p = torch.full((sentences, beam), float("-inf"), device=source.device)
    log_p[:, 0] = 0.0
    hypotheses = torch.full((sentences, beam, 1), BEGIN, device=source.device)
    cache: DecoderCache | None = None
    cache_rows: torch.Tensor | None = None
    for length in range(1, max_length + 1):
        logits, cache = model.decode(hypotheses[:, :, -1].reshape(-1, 1), memory, cache, cache_rows)
        # Of every hypothesis its best continuations: among those are the best of all.
        continuations = _allowed(logits[:, -1]).log_softmax(-1)
        likely, candidates = _greatest(continuations, min(2 * beam, continuations.shape[-1]))
        continued = likely.view(len(rows), beam, -1) + log_p.unsqueeze(2)
        top, places = continued.flatten(1).topk(min(2 * beam, continued[0].numel()))
        parents, tokens = places // likely.shape[-1], candidates.view(len(rows), -1).gather(1, places)
        ends = tokens == END

        finished, which = (top / length_penalty(length, exponent)).masked_fill(~ends, float("-inf")).max(1)
        for index in (finished > best_score).nonzero().squeeze(1).tolist():
            best_score[index] = finished[index]
            best_tokens[int(rows[index])] = hypotheses[index, parents[index, which[index]], 1:].tolist()

        log_p, kept = top.masked_fill(ends, float("-inf")).topk(beam)
        parents, tokens = parents.gather(1, kept), tokens.gather(1, kept)
        hypotheses = hypotheses.gather(1, parents.unsqueeze(2).expand(-1, -1, hypotheses.shape[2]))
        hypotheses = torch.cat([hypotheses, tokens.unsqueeze(2)], 2)

        going = (log_p[:, 0] / length_penalty(max_length, exponent) > best_score).nonzero().squeeze(1)
        cache_rows = (torch.arange(len(rows), device=source.device).unsqueeze(1) * beam + parents)[going].flatten()
        if not len(going):
            break
        if len(going) < len(rows):
            memory = memory.chosen(going)
            rows, best_score, log_p, hypotheses = rows[going], best_score[going], log_p[going], hypotheses[going]
    for row, score, tokens_of in zip(rows.tolist(), best_score.tolist(), hypotheses[:, 0, 1:], strict=True):
        if score == float("-inf"):
            best_tokens[row] = tokens_of.tolist()
    return best_tokens


def _greatest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`values.topk(count)` of a matrix: each row's greatest are among the chunks of it with the greatest maxima.

    A pass for the maxima and a search in little is faster than a search in all.
    """
    chunks = values.shape[1] // CHUNK
    if chunks < 2 * count:
        likely, where = values.topk(count)
        return likely, where
    _, which = values[:, : chunks * CHUNK].reshape(-1, chunks, CHUNK).amax(2).topk(count, sorted=False)
    inside = torch.arange(CHUNK, device=values.device)
    rest = torch.arange(chunks * CHUNK, values.shape[1], device=values.device).expand(len(values), -1)
    candidates = torch.cat([(which.unsqueeze(2) * CHUNK + inside).flatten(1), rest], 1)
    likely, where = values.gather(1, candidates).topk(count)
    return likely, candidates.gather(1, where)


def _allowed(logits: torch.Tensor) -> torch.Tensor:
    """Logits of which neither padding nor the begin symbol can be chosen; they are changed in place."""
    logits[:, PADDING] = logits[:, BEGIN] = float("-inf")
    return logits
