"""What a study cannot say, in plain sentences: the page prints them where a reader would otherwise see too much."""

from __future__ import annotations

from collections.abc import Iterator

from sparsebench.analysis.frontiers import DENSE, Frontiers
from sparsebench.analysis.study_data import StudyData, known_steps
from sparsebench.analysis.wording import asked, count, listing, spread
from sparsebench.records.choice import best_of_all
from sparsebench.records.schema import OWN_SOURCE

__all__ = ["remarks", "summary"]

_LUCK = 0.05  # of a value
_SPACE = "\N{NO-BREAK SPACE}"


def summary(data: StudyData, frontiers: Frontiers) -> str:
    """What was compared, in one sentence."""
    runs = data.results.drop_duplicates("run_id")
    seeds = runs.groupby(["method", "configuration"])["seed"].nunique()
    methods = list(frontiers.chosen)
    compared = "looks at one way" if len(methods) == 1 else f"compares {len(methods)} ways"
    subject = f"{compared} of making a network sparse ({listing(methods)})" if methods else "looks at dense networks only"
    baseline = " beside the dense network" if methods and frontiers.dense is not None else ""
    steps = known_steps(runs)
    run_each, seed_each = "each" if len(runs) > 1 else "", "each" if len(seeds) > 1 else ""
    number, unit = (spread(steps), "step" if max(steps) == 1 else "steps") if steps else ("an unknown number of", "steps")
    length = f"{number} training {unit} {run_each}".strip()
    replicates = f"{spread(list(seeds))} {'seed' if max(seeds) == 1 else 'seeds'} {seed_each}".strip()
    return (
        f"This page {subject}{baseline} on {data.note.workload}: {count(len(runs), 'finished run')} of {length}, "
        f"{count(len(seeds), 'configuration')} with {replicates}."
    )


def remarks(data: StudyData, frontiers: Frontiers) -> list[str]:
    """The sentences that apply to a study, the gravest first."""
    return [
        *_progress(data),
        *_sources(data, frontiers),
        *_comparison(data, frontiers),
        *_spread(frontiers),
        *_passed_over(frontiers),
        *_budget(data),
    ]


def _progress(data: StudyData) -> Iterator[str]:
    finished = int(data.results["run_id"].nunique())
    failed = len(data.failures)
    planned = data.note.planned_runs
    missing = 0 if planned is None else max(planned - finished - failed - data.stopped, 0)
    if data.stopped:
        yield (
            f"The study's search stopped {count(data.stopped, 'run')} early. They have no results, and are in no count of "
            "configurations on this page."
        )
    if planned is not None and finished + data.stopped < planned:
        yield (
            f"The study is not complete: {finished:,} of {count(planned, 'planned run')} finished, {failed:,} failed, "
            f"{missing:,} still missing."
        )
    elif planned is not None and finished + data.stopped > planned:
        yield f"The folder holds {count(finished, 'finished run')}, more than the {planned:,} this study planned."
    elif failed or data.unfinished:
        yield f"{count(failed, 'run')} failed and {data.unfinished:,} did not finish; the values come from the others."


def _sources(data: StudyData, frontiers: Frontiers) -> Iterator[str]:
    if data.source != OWN_SOURCE:
        yield (
            f"These results are imported ({data.source}). They have one split, which both chose the values and reports them, so "
            "the best values look a little better than they are; what the runs cost is unknown."
        )
    if data.tables_alone:
        yield "The tables of this folder came without its runs, so that nothing is known of runs that failed."
    if not data.has_study_file:
        yield (
            "This folder has no study.json: its runs were started one by one. What they were meant to compare is "
            "unknown, and the sparsities shown are those that some run was asked for."
        )
    if frontiers.incomplete:
        yield (
            f"{count(frontiers.incomplete, 'evaluation was', 'evaluations were')} left out because the validation "
            "or the test split is missing."
        )


def _comparison(data: StudyData, frontiers: Frontiers) -> Iterator[str]:
    if frontiers.dense is None:
        yield "No dense network was trained here, so the page cannot say how far below it a sparse one falls."
    if not frontiers.chosen:
        yield "Only dense networks were trained here: there is no sparse method to judge."
    elif len(frontiers.chosen) == 1:
        yield f"{next(iter(frontiers.chosen))} is the only sparse method here: there is nothing to compare it with."
    if not frontiers.sparsities:
        yield "No sparsity was asked about, so there is no table of best values; the figure shows every point."
    elif len(frontiers.sparsities) == 1 and frontiers.chosen:
        only = asked(frontiers.sparsities[0])
        yield f"Only one sparsity ({only}) was asked about: how the methods behave at others is unknown."
    expected = {*data.note.methods, *(failure.method for failure in data.failures)} - {""}
    missing = sorted(expected - set(data.results["method"]))
    if missing:
        yield f"No run of {listing(missing)} finished, so nothing can be said about {'it' if len(missing) == 1 else 'them'}."
    for method, chosen in frontiers.chosen.items():
        if frontiers.sparsities and not any(chosen):
            best = max((point.sparsity for point in frontiers.points if point.method == method), default=None)
            reached = "" if best is None else f" (its sparsest point has {100 * best:.2f} %)"
            yield f"{method} has no point that is sparse enough for any sparsity asked about{reached}."


def _spread(frontiers: Frontiers) -> Iterator[str]:
    shown = [point for chosen in frontiers.chosen.values() for point in chosen if point is not None]
    if frontiers.dense is not None:
        shown.append(frontiers.dense)
    single = sum(point.test.n == 1 for point in shown)
    if shown and single == len(shown):
        yield "Every value rests on one seed: there are no intervals, and differences may be chance."
    elif single:
        yield f"{single} of the {len(shown)} values shown rest on one seed and have no interval."
    if any(point.test.n == 2 for point in shown):
        yield "An interval from two seeds is very wide by nature: 12.7 standard errors to either side."


def _passed_over(frontiers: Frontiers) -> Iterator[str]:
    """Where configurations of several seeds were chosen that stay far below single runs: luck does not explain so much."""
    for method, chosen in frontiers.chosen.items():
        own = [point for point in frontiers.points if point.method == method]
        places = []
        for sparsity, point in zip(frontiers.sparsities, chosen, strict=True):
            single = best_of_all(own, sparsity)
            if point is not None and single is not None and single.validation - point.validation > _LUCK * abs(single.validation):
                places.append(asked(sparsity))
        if places:
            yield (
                f"At {listing(places)} single runs of {method} are more than {100 * _LUCK:g}{_SPACE}% better on the validation "
                "split than the configuration shown, which has several seeds: give the best single runs more seeds."
            )


def _budget(data: StudyData) -> Iterator[str]:
    runs = data.results.drop_duplicates("run_id")
    if runs["steps"].nunique() > 1:
        steps = spread(known_steps(runs))
        yield f"Runs were trained for different numbers of steps ({steps}): longer training may explain differences."
    tried = runs[runs["method"] != DENSE].groupby("method")["configuration"].nunique()
    untuned = [str(method) for method, number in tried.items() if number == 1]
    if untuned:
        yield f"{listing(untuned)}: one configuration only, so nothing was tuned."
    if tried.nunique() > 1:
        budgets = ", ".join(f"{method} {number:,}" for method, number in tried.items())
        yield f"Methods did not try the same number of configurations ({budgets}); more tries find better values."
