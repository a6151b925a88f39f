from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import pytest
from torch import Tensor, ones

from segregation.interventions import heads, phase
from segregation.shapes import HeadScores, Pattern
from tests.type_checks import has_shape


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
    """That shapes are compared over arguments and results, and other types checked, in the package under test."""
    scores: HeadScores = ones(2, 4, 3)
    assert heads.entropy(ones(2, 4, 3, 5) / 5).shape == scores.shape
    with pytest.raises(Exception, match=r"Type-check error whilst checking the parameters of .*entropy"):
        heads.entropy(ones(4, 3, 5))
    with pytest.raises(Exception, match="violates type hint"):
        phase.acting(7, *[None] * 3)  # type: ignore[arg-type]
