"""Can this model be believed here? Checks on the loaded model, as data, and what is switched off where one fails."""

import operator
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from segregation.errors import ModelError
from segregation.models import checks_batches, checks_reading, checks_running
from segregation.models.checks_outcome import CONSEQUENCES, Check, Question, Tolerances, ask
from segregation.models.hybrid import HybridModel

__all__ = ["CONSEQUENCES", "MORE_THAN", "Check", "apply_checks", "quick_checks", "run_checks", "summarise"]

_QUICK = (*checks_reading.QUICK, *checks_running.QUICK, *checks_batches.QUICK)
_SLOW = (*checks_reading.SLOW, *checks_running.SLOW, *checks_batches.SLOW)

MORE_THAN = frozenset(question.name for question in (*_QUICK, *_SLOW) if question.passes is operator.gt)
"""Names of the checks that pass where more than the tolerance is measured."""


def quick_checks(model: HybridModel) -> list[Check]:
    """The checks that every load runs: a few forwards over a dozen tokens."""
    return _ask(model, _QUICK)


def run_checks(model: HybridModel) -> list[Check]:
    """All checks."""
    return _ask(model, (*_QUICK, *_SLOW))


def _ask(model: HybridModel, questions: Sequence[Question]) -> list[Check]:
    tolerances = Tolerances.of(model)
    return [ask(model, question, tolerances) for question in questions]


def refusals(checks: Sequence[Check]) -> list[Check]:
    """The checks that failed and that nothing can be switched off for: no number from the model can be believed.

    >>> [check.consequence for check in refusals([Check("x", "fail", 1.0, 0.1, kind) for kind in CONSEQUENCES])]
    ['refused']
    """
    return [check for check in checks if check.failed and check.consequence == "refused"]


def switched_off(checks: Sequence[Check]) -> list[str]:
    """What failed checks switch off: ``"batching"``, ``"fork"``, both or nothing.

    >>> switched_off([Check("x", "fail", 1.0, 0.1, "fork"), Check("y", "pass", 0.0, 0.1, "batching")])
    ['fork']
    """
    return sorted({check.consequence for check in checks if check.failed} & {"batching", "fork"})


def summarise(model: HybridModel, checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as plain JSON values, with what they were made on and what follows from them."""
    names = (
        "name",
        "family",
        "revision",
        "weights_sha256",
        "dtype",
        "attn_implementation",
        "scans",
        "kernels",
        "versions",
    )
    known = {name: model.description[name] for name in names if name in model.description}
    return {
        **known,
        "device": str(model.device),
        "refused": bool(refusals(checks)),
        "switched_off": switched_off(checks),
        "seconds": round(sum(check.seconds for check in checks), 3),
        "checks": [asdict(check) for check in checks],
    }


def apply_checks(model: HybridModel, checks: Sequence[Check]) -> None:
    """Record the checks on the model and switch off what failed.

    Raises:
        ModelError: a check failed that nothing can be switched off for, so no number from this model could be believed.
    """
    if fatal := refusals(checks):
        raise ModelError(
            f"{model.description.get('name', model.family.name)} fails its self-checks: "
            + "; ".join(check.said for check in fatal)
            + ". Load with self_checks=False only to find out why"
        )
    off = switched_off(checks)
    model.can_batch = "batching" not in off
    model.can_fork = "fork" not in off
    model.description["self_checks"] = [asdict(check) for check in checks]
    model.description["switched_off"] = off
