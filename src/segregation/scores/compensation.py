"""Whether anything tried on prompt or state restores retrieval where attention cannot read the needle, and how far.

Two measures: exact retrieval, and the answer's gain in nats per token: ln p(target | prompt) minus ln p(target | the
same prompt with another answer in its needle), over the tokens of the answer. A state that knows nothing of the answer
gains 0 on average, whatever question and haystack give away.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segregation.errors import ScoreError
from segregation.interventions.compensation import CRIPPLED, Setting, setting_of
from segregation.interventions.rules import Plan
from segregation.runs.record import Record
from segregation.scores.bootstrap import benjamini_hochberg
from segregation.scores.deciding import GONE
from segregation.scores.outcomes import Outcome, outcomes
from segregation.scores.retrieval import target_loglikelihood
from segregation.scores.statistics import (
    Interval,
    McNemar,
    bootstrap_difference,
    bootstrap_mean,
    mcnemar,
    wilson,
)

ALPHA = 0.05
"""Share of false discoveries that is allowed among prompts that help."""

NOISE = 1e-4
"""Gains up to this size, in nats per token, are float noise."""

Pairing = tuple[object, ...]
"""What samples of one needle in one haystack share, whatever the copies and readings."""


@dataclass(frozen=True)
class Prompting:
    """What the prompt does to help.

    Attributes:
        context_length: tokens of the context.
        depth_percent: of the last needle in it.
        readings: how often the prompt holds the context.
        copies: how often the context holds the needle.
    """

    context_length: int
    depth_percent: float | int
    readings: int = 1
    copies: int = 1

    @property
    def plain(self) -> "Prompting":
        """The same context read once, with one needle."""
        return Prompting(self.context_length, self.depth_percent)

    @property
    def together(self) -> bool:
        """Whether everything is tried at once: several readings, several copies, the last right before the question.

        >>> Prompting(96, 100, readings=2, copies=4).together, Prompting(96, 50, readings=2, copies=4).together
        (True, False)
        """
        return self.readings > 1 and self.copies > 1 and self.depth_percent == 100


@dataclass(frozen=True)
class Row:
    """What one prompting gives under one setting.

    Attributes:
        model: the model's name.
        setting: what attention may do and recurrent layers read.
        prompting: what the prompt does.
        distance: mean tokens from the end of the last needle to the last question.
        exact: share of needles retrieved whole, with Wilson's interval.
        recall: mean score (token recall), with its bootstrap interval.
        gains: the answer's gain of each sample that has a foil, in nats per token.
        gain: their mean, with its bootstrap interval; ``None`` without any.
        exact_over_plain: McNemar's test of this row (first) against the plain prompting in the same setting of
            attention, recurrent layers reading all, on the same needles; ``None`` where that was not run.
        gain_over_plain: the mean gain minus that of the plain prompting, likewise, with its paired bootstrap interval.
    """

    model: str
    setting: Setting
    prompting: Prompting
    distance: float
    exact: Interval
    recall: Interval
    gains: tuple[float, ...] = ()
    gain: Interval | None = None
    exact_over_plain: McNemar | None = None
    gain_over_plain: Interval | None = None


@dataclass(frozen=True)
class Onset:
    """From where on something helps in a setting.

    Attributes:
        setting: what attention may do and recurrent layers read.
        copies: fewest copies that help, in a context read once; ``None`` if no number that was tried does.
        distance: the largest distance at which a lone needle, read once, is known of; ``None`` if at none.
    """

    setting: Setting
    copies: int | None
    distance: float | None


def compensation_rows(records: Iterable[Record]) -> list[Row]:
    """Every prompting under every setting that was run, in the order of the records; other records are left alone.

    Raises:
        ScoreError: a sample and its foil that were not scored under the same plans.
    """
    kept = [record for record in records if _setting(record) is not None and record.metadata.get("task") == "needle"]
    generated: dict[tuple[Setting, Prompting], dict[Pairing, Outcome]] = defaultdict(dict)
    for outcome in outcomes(kept):
        setting = setting_of(outcome.plan)
        if setting is not None and outcome.task == "needle" and "copies" in outcome.metadata:
            generated[setting, prompting_of(outcome)][_pairing(outcome.metadata)] = outcome
    gains = _gains(kept)
    return [_row(cell, generated, gains) for cell in generated]


def onsets(rows: Sequence[Row]) -> list[Onset]:
    """For each setting without direct access to the needle, the fewest copies and the largest distance that help.

    A model without attention has no such setting: its attention is "untouched", and it is looked at as it is. What
    helps is decided by ``helping``, among all the rows looked at.
    """
    tried = [row for row in rows if row.setting.recurrence != "skips the needle"]
    looked_at = [row for row in tried if row.setting.attention in CRIPPLED] or tried
    helpful = helping(looked_at)
    found = []
    for setting in dict.fromkeys(row.setting for row in looked_at):
        own = [row for row in helpful if row.setting == setting and row.prompting.readings == 1]
        distances = [row.distance for row in own if row.prompting.copies == 1]
        found.append(
            Onset(setting, min((row.prompting.copies for row in own), default=None), max(distances, default=None))
        )
    return found


def helping(rows: Sequence[Row]) -> list[Row]:
    """The rows in which more than 5% are retrieved, or the answer gains more than 0.

    Retrieval by an exact binomial test, the gain by Wilcoxon's signed ranks; of all tests together at most 5% of those
    that find something are expected to be wrong. (Benjamini and Hochberg 1995)

    >>> found = (wilson(0, 20), wilson(9, 20))
    >>> rows = [Row("m", Setting("ablated"), Prompting(64, 0), 40.0, exact, bootstrap_mean([0.1])) for exact in found]
    >>> helping(rows) == rows[1:]
    True
    """
    if not rows:
        return []
    p_values = [p for row in rows for p in (_p_exact(row.exact), _p_gain(row.gains))]
    found = np.array(benjamini_hochberg(p_values)) < ALPHA
    return [row for row, at in zip(rows, range(0, len(found), 2), strict=True) if found[at : at + 2].any()]


def _p_exact(exact: Interval) -> float:
    from scipy.stats import binomtest

    return float(binomtest(round(exact.value * exact.n), exact.n, GONE, alternative="greater").pvalue)


def _p_gain(gains: Sequence[float]) -> float:
    """Of gains above 0; 1 where none is more than noise."""
    from scipy.stats import wilcoxon

    real = [gain for gain in gains if abs(gain) > NOISE]
    if not real:
        return 1.0
    return float(wilcoxon(real, alternative="greater").pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def prompting_of(outcome: Outcome) -> Prompting:
    """What the prompt of an outcome does to help."""
    copies = int(outcome.metadata.get("copies") or 1)
    return Prompting(outcome.context_length, outcome.depth_percent, outcome.readings, copies)


def _row(
    cell: tuple[Setting, Prompting],
    generated: Mapping[tuple[Setting, Prompting], Mapping[Pairing, Outcome]],
    gains: Mapping[tuple[Setting, Prompting], Mapping[Pairing, float]],
) -> Row:
    setting, prompting = cell
    own, known = generated[cell], gains.get(cell, {})
    plain = (Setting(setting.attention), prompting.plain)
    at_plain = generated.get(plain, {}) if plain != cell else {}
    known_plain = gains.get(plain, {}) if plain != cell else {}
    both, both_known = [key for key in own if key in at_plain], [key for key in known if key in known_plain]
    rows = list(own.values())
    return Row(
        model=rows[0].model,
        setting=setting,
        prompting=prompting,
        distance=sum(float(row.metadata.get("distance") or 0) for row in rows) / len(rows),
        exact=wilson(sum(row.correct for row in rows), len(rows)),
        recall=bootstrap_mean([row.value for row in rows]),
        gains=tuple(known.values()),
        gain=bootstrap_mean(list(known.values())) if known else None,
        exact_over_plain=mcnemar([own[key].correct for key in both], [at_plain[key].correct for key in both])
        if both
        else None,
        gain_over_plain=bootstrap_difference(
            [known[key] for key in both_known], [known_plain[key] for key in both_known]
        )
        if both_known
        else None,
    )


def _gains(records: Sequence[Record]) -> dict[tuple[Setting, Prompting], dict[Pairing, float]]:
    """The gain of every sample and plan that was scored beside its foil."""
    scored = {(r.sample_id, r.plan_hash): r for r in records if r.kind == "loglikelihood" and not r.choices}
    found: dict[tuple[Setting, Prompting], dict[Pairing, float]] = defaultdict(dict)
    for foil in scored.values():
        if "foil_of" not in foil.metadata:
            continue
        own = scored.get((str(foil.metadata["foil_of"]), foil.plan_hash))
        if own is None:
            raise ScoreError(
                f"the foil {foil.sample_id!r} was scored under a plan that its sample was not scored under "
                f"({foil.plan_hash}); go on with the run until both are (--resume)"
            )
        setting, metadata = _setting(foil), foil.metadata
        assert setting is not None
        answer = int(metadata["answer_tokens"] or 0)
        prompting = Prompting(
            int(metadata["context_length"] or 0),
            float(metadata["depth_percent"] or 0),
            int(metadata["readings"] or 1),
            int(metadata["copies"] or 1),
        )
        gain = (target_loglikelihood(own) - target_loglikelihood(foil)) / answer
        found[setting, prompting][_pairing(metadata)] = gain
    return found


def _pairing(metadata: Mapping[str, str | int | float | bool | None]) -> Pairing:
    return tuple(
        metadata.get(name) for name in ("haystack", "needle", "context_length", "depth_percent", "seed", "repetition")
    )


def _setting(record: Record) -> Setting | None:
    return _setting_of(record.plan)


@functools.cache
def _setting_of(plan: str) -> Setting | None:
    return setting_of(Plan.from_json(plan))
