"""What an artefact of the code of arXiv 2510.19861 changes: the same samples its way and ours, side by side."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segregation.interventions.rules import Plan
from segregation.runs.record import Record
from segregation.scores.retrieval import retrieval_score, target_loglikelihood
from segregation.scores.statistics import Interval, bootstrap_difference, bootstrap_mean, mcnemar, pair, wilson


@dataclass(frozen=True)
class Finding:
    """One quantity with and without an artefact.

    Attributes:
        artefact: its short name; one artefact may have several quantities.
        model: the model it was measured on.
        quantity: what was measured, with its unit.
        theirs: what the paper's way is.
        ours: what our way is.
        at_theirs: the quantity their way; ``None`` where it does not arise.
        at_ours: the quantity our way.
        note: how far they differ, or why the artefact does not arise.
    """

    artefact: str
    model: str
    quantity: str
    theirs: str
    ours: str
    at_theirs: Interval | None
    at_ours: Interval | None
    note: str


def retrieval_finding(
    artefact: str, model: str, theirs: tuple[str, Sequence[Record]], ours: tuple[str, Sequence[Record]]
) -> Finding:
    """Exact retrieval of the same samples, with Wilson intervals and McNemar's exact test.

    Raises:
        ScoreError: the samples are not the same.
    """
    pairs = pair(theirs[1], ours[1])
    found = [(retrieval_score(one).exact, retrieval_score(other).exact) for one, other in pairs]
    test = mcnemar([one for one, _ in found], [other for _, other in found])
    note = f"{test.only_first + test.only_second} of {len(found)} samples differ, McNemar p = {test.p_value:.2g}"
    return Finding(
        artefact,
        model,
        "exact retrieval (share)",
        theirs[0],
        ours[0],
        wilson(sum(one for one, _ in found), len(found)),
        wilson(sum(other for _, other in found), len(found)),
        note,
    )


def target_finding(
    artefact: str, model: str, theirs: tuple[str, Sequence[Record]], ours: tuple[str, Sequence[Record]]
) -> Finding:
    """Mean log-probability of the needle's tokens on the same samples, with bootstrap intervals.

    Raises:
        ScoreError: the samples are not the same, or were not scored by log-likelihood.
    """
    pairs = pair(theirs[1], ours[1])
    means = [tuple(target_loglikelihood(record) / sum(record.token_counts) for record in both) for both in pairs]
    first, second = [one for one, _ in means], [other for _, other in means]
    gap = bootstrap_difference(first, second)
    return Finding(
        artefact,
        model,
        "ln p of the needle (nats per token)",
        theirs[0],
        ours[0],
        bootstrap_mean(first),
        bootstrap_mean(second),
        f"theirs - ours = {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
    )


def with_plan(records: Sequence[Record], plan: Plan, kind: str, sample_ids: set[str]) -> list[Record]:
    """The records of one kind, under one plan, of these samples."""
    return [r for r in records if r.kind == kind and r.plan_hash == plan.hash and r.sample_id in sample_ids]


def write_findings(findings: Sequence[Finding], path: Path | str) -> None:
    """Write findings as a JSON list of objects."""
    text = json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
