"""Machine code that lies on the disk is taken again only for loops that are made of the same."""

import pytest

from segregation.models import compiled_loops, entropy_blocks
from segregation.models.compiled_loops import F, compiled, made_of

pytestmark = pytest.mark.skipif(compiled_loops.numba is None, reason="needs numba")


def named() -> str:
    """What numba would call the loop of exponentials, and its file, if it were compiled now."""
    plain = entropy_blocks._take.py_func
    before = plain.__qualname__
    try:
        return compiled(plain).py_func.__qualname__
    finally:
        plain.__qualname__ = before


@pytest.mark.parametrize(("module", "number"), [(compiled_loops, "_HALF"), (entropy_blocks, "_HIDDEN")])
def test_a_loop_is_named_by_numbers_of_the_functions_that_it_calls(
    module: object, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = named()
    assert before == named() and before.startswith("_run_on_")
    monkeypatch.setattr(module, number, F(3.25))
    assert before != named()


def test_a_loop_is_named_by_the_source_of_the_functions_that_it_calls() -> None:
    made = made_of(entropy_blocks._take)
    assert all(f"def {name}(" in made for name in ("_run_on", "_exp_line", "_exp_of", "_largest_bits"))
