"""The six findings of Gale, Elsen and Hooker 2019, each judged on the runs of one study by a written rule.

`finding_statements` says what each finding states about these runs; here is how a verdict follows from statements. A
statement about a difference holds where its test (`margins`) shows it with p at most 0.05, and fails where the opposite is
shown so, after Holm's correction over all statements of the finding. A finding is *supported* where every statement holds:
as all of them must, no correction is due (Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics
24, 1982). It is *refuted* where one fails: as a single one does it, Holm's correction is. Otherwise it is *not shown*; where
runs that it needs are missing and nothing refutes it, it *cannot be said here*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sparsebench.analysis.comparisons import ERROR_RATE
from sparsebench.analysis.finding_rules import RULES, Rule
from sparsebench.analysis.finding_statements import Judged, Statement, StudyFacts
from sparsebench.analysis.frontiers import Frontiers
from sparsebench.analysis.method_costs import method_costs
from sparsebench.analysis.statistics import holm
from sparsebench.analysis.study_data import StudyData
from sparsebench.analysis.wording import NOTHING, asked, listing

__all__ = ["Evidence", "Finding", "Verdict", "find_findings"]

_ONE_SEED = "not shown (one seed)"

Verdict = Literal["supported", "refuted", "not shown", "cannot be said here"]


@dataclass(frozen=True)
class Evidence:
    """A row of the numbers behind a finding.

    Args:
        claim: What is stated.
        where: The sparsity, an en dash where it is about none.
        numbers: What was measured.
        p_holds: The p value of its being shown; an en dash where nothing is tested.
        p_fails: That of the opposite's being shown, after Holm's correction.
        outcome: What came out, in words.
    """

    claim: str
    where: str
    numbers: str
    p_holds: str
    p_fails: str
    outcome: str


@dataclass(frozen=True)
class Finding:
    """One finding of the paper on this study.

    Args:
        rule: What it states, and by which rule.
        verdict: The verdict.
        reasons: Why, in sentences.
        evidence: The numbers, a row for each statement.
    """

    rule: Rule
    verdict: Verdict
    reasons: tuple[str, ...]
    evidence: tuple[Evidence, ...]

    @property
    def in_words(self) -> str:
        """The verdict, with the reason where a single seed is the whole reason."""
        alone = self.verdict == "not shown" and all(row.outcome == _ONE_SEED for row in self.evidence)
        return "not shown: one seed" if alone else self.verdict


def find_findings(data: StudyData, frontiers: Frontiers, *, paired: bool) -> list[Finding]:
    """Judge the six findings.

    Args:
        data: The study.
        frontiers: Its chosen points.
        paired: Whether runs of equal seed share initial weights and data, as those of one study do.

    Returns:
        The findings in the paper's order.
    """
    facts = StudyFacts(frontiers, data.metric, method_costs(data.results), paired)
    return [_judge(rule, rule.judge(facts)) for rule in RULES]


def _judge(rule: Rule, judged: Judged) -> Finding:
    adjusted = _adjusted(judged.statements)
    outcomes = [_outcome(statement, p_fails) for statement, p_fails in zip(judged.statements, adjusted, strict=True)]
    verdict = _verdict(outcomes, judged.missing)
    evidence = tuple(
        Evidence(
            claim=statement.claim,
            where=NOTHING if statement.sparsity is None else asked(statement.sparsity),
            numbers=statement.numbers,
            p_holds=NOTHING if statement.test is None or p_fails is None else f"{statement.test.p_holds:.4f}",
            p_fails=NOTHING if p_fails is None else f"{p_fails:.4f}",
            outcome=_in_words(statement, outcome),
        )
        for statement, p_fails, outcome in zip(judged.statements, adjusted, outcomes, strict=True)
    )
    return Finding(rule, verdict, tuple(_reasons(judged, evidence)), evidence)


def _adjusted(statements: Iterable[Statement]) -> list[float | None]:
    """The corrected p value of the opposite of each statement; None where there is nothing to test."""
    statements = list(statements)
    testable = [index for index, own in enumerate(statements) if own.test is not None and own.test.difference.testable]
    p_values = [test.p_fails for index in testable if (test := statements[index].test) is not None]
    found: list[float | None] = [None] * len(statements)
    for index, p_value in zip(testable, holm(p_values), strict=True):
        found[index] = p_value
    return found


def _outcome(statement: Statement, p_fails: float | None) -> bool | None:
    if statement.test is None:
        return statement.holds
    if p_fails is None:
        return None
    if statement.test.p_holds <= ERROR_RATE:
        return True
    return False if p_fails <= ERROR_RATE else None


def _verdict(outcomes: Sequence[bool | None], missing: Sequence[str]) -> Verdict:
    if False in outcomes:
        return "refuted"
    if missing or not outcomes:
        return "cannot be said here"
    return "supported" if all(outcomes) else "not shown"


def _in_words(statement: Statement, outcome: bool | None) -> str:
    if outcome is not None:
        return "holds" if outcome else "fails"
    if statement.test is None or statement.test.difference.testable:
        return "not shown"
    return _ONE_SEED if statement.test.difference.n < 2 else "not shown (the seeds do not vary)"


def _reasons(judged: Judged, evidence: Iterable[Evidence]) -> Iterable[str]:
    claims: dict[str, dict[str, list[str]]] = {}
    for row in evidence:
        claims.setdefault(row.claim, {}).setdefault(row.outcome, []).append(row.where)
    for claim, outcomes in claims.items():
        parts = []
        for outcome, places in outcomes.items():
            known = [place for place in places if place != NOTHING]
            parts.append(f"{outcome} at {listing(known)}" if known else outcome)
        yield f"{claim[:1].upper()}{claim[1:]}: {'; '.join(parts)}."
    for lack in judged.missing:
        yield f"{lack[:1].upper()}{lack[1:]}."
