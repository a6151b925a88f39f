from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from torch import Tensor, int64, ones

from segregation.interventions import heads, phase
from segregation.shapes import HeadScores, Pattern
from tests.type_checks import has_shape, jaxtyped


@pytest.mark.parametrize(
    "hint",
    [
        *(Pattern, Pattern | None, list[Pattern], tuple[int, Pattern], dict[str, tuple[Pattern, ...]]),
        *(Callable[[Pattern], int], Callable[..., Pattern], Sequence["Fork"], "text", TypeVar("T")),  # noqa: F821
    ],
)
def test_what_may_be_a_shape_is_compared(hint: Any) -> None:
    assert has_shape(hint)


@pytest.mark.parametrize("hint", [int, Tensor, None, list[int], Literal["a", "b"], Callable[[int], str], Any])
def test_what_is_no_shape_is_not(hint: Any) -> None:
    assert not has_shape(hint)


def test_both_kinds_of_functions_are_checked() -> None:
    """Axes of one name agree over the arguments of one call, not of another; other types are checked, too."""
    scores: HeadScores = ones(2, 4, 3)
    assert heads.entropy(ones(2, 4, 3, 5) / 5).shape == scores.shape
    assert heads.keep_top(ones(1, 2, 3), ones(1, 3, dtype=int64)).shape == (1, 2, 3)
    for call in (lambda: heads.entropy(ones(4, 3, 5)), lambda: heads.keep_top(scores, ones(2, 5, dtype=int64))):
        with pytest.raises(BeartypeCallHintParamViolation, match="violates type hint"):
            call()
    with pytest.raises(BeartypeCallHintParamViolation, match="violates type hint"):
        phase.acting(7, *[None] * 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("annotation", [HeadScores, "HeadScores"])
def test_what_is_returned_agrees_with_what_was_given(annotation: Any) -> None:
    def flip(scores: HeadScores, to: int):
        return scores.transpose(0, to)

    flip.__annotations__["return"] = annotation
    checked = jaxtyped(typechecker=beartype)(flip)
    assert checked(ones(2, 4, 3), 0).shape == (2, 4, 3)
    with pytest.raises(BeartypeCallHintReturnViolation, match="violates type hint"):
        checked(ones(2, 4, 3), 1)
