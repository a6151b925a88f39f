"""A claim, of arXiv 2510.19861 or beyond it, about one model: what was measured, and whether it holds.

Every verdict reads an interval, not a point: a claim ``holds`` if its whole 95% interval lies on the right side of the
bar, ``fails`` if the whole interval lies on the wrong side, and is ``undecided`` in between, or where the untouched
model retrieves less than 95%, or where the control was not run. ``segregation.scores.verdicts`` decides the claims.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from segregation.errors import RecordError
from segregation.scores.statistics import Interval

Verdict = Literal["holds", "fails", "undecided"]

INDICES = frozenset({"segregation-index", "double-dissociation"})
"""Claims whose measured number is an index from -1 to 1; that of every other one is a share or a difference of two."""


@dataclass(frozen=True)
class Claim:
    """A statement about one model, with what was measured and whether it holds.

    Attributes:
        id: names the claim; the same for every model.
        statement: what is claimed.
        model: the model it was tested on.
        paper: the paper's own value, in its own words; ``None`` for a claim that it does not make.
        measured: the number that the verdict is about; ``None`` if there is none.
        ci_low: lower end of its 95% interval.
        ci_high: upper end of its 95% interval.
        n: samples behind the number (for ``random-heads``, draws).
        verdict: ``"holds"``, ``"fails"`` or ``"undecided"``.
        evidence: patterns of the keys of the records behind it (``*`` is any sample).
        note: how to read the number, or why nothing could be decided.

    >>> Claim("ablation", "exact retrieval is 0", "m", "0%", 0.0, 0.0, 0.037, 100, "holds", ("generate:*",)).n
    100
    """

    id: str
    statement: str
    model: str
    paper: str | None
    measured: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    verdict: Verdict
    evidence: tuple[str, ...]
    note: str = ""


def conclude(
    id: str,
    said: tuple[str, str | None],
    verdict: Verdict,
    measured: Interval | None,
    *,
    model: str,
    n: int,
    evidence: Sequence[str],
    note: str,
) -> Claim:
    """A claim with what was measured of it, if anything; ``said`` is its statement and the paper's own value.

    ``n`` counts where nothing was measured; else the interval knows.
    """
    return Claim(
        id=id,
        statement=said[0],
        model=model,
        paper=said[1],
        measured=None if measured is None else measured.value,
        ci_low=None if measured is None else measured.low,
        ci_high=None if measured is None else measured.high,
        n=n if measured is None else measured.n,
        verdict=verdict,
        evidence=tuple(evidence),
        note=note,
    )


def write_claims(claims: Sequence[Claim], path: Path | str) -> None:
    """Write claims as a JSON list of objects."""
    text = json.dumps([dataclasses.asdict(claim) for claim in claims], indent=2, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_claims(path: Path | str) -> list[Claim]:
    """Read ``write_claims`` back.

    Raises:
        RecordError: no such file, not JSON, a field missing or unknown, or an unknown verdict.
    """
    try:
        return [_claim(plain) for plain in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise RecordError(
            f"{path} is not a list of claims ({error}); make it again with `segregation report`"
        ) from error


def _claim(plain: Mapping[str, Any]) -> Claim:
    if plain.get("verdict") not in get_args(Verdict):
        raise RecordError(f"a verdict is one of {get_args(Verdict)}, got {plain.get('verdict')!r}")
    return Claim(**{**plain, "evidence": tuple(plain.get("evidence", ()))})
