"""Machine code that lies on the disk is taken again only for loops that are made of the same."""

import pytest

from segregation.models import compiled_loops, entropy_blocks
from segregation.models.compiled_loops import F, compiled, made_of

RUN_ON = getattr(entropy_blocks, "_run_on", None)
pytestmark = pytest.mark.skipif(compiled_loops.numba is None, reason="needs numba")


def named() -> str:
    """What numba would call the loop of exponentials, and its file, if it were compiled now."""
    return compiled(RUN_ON).py_func.__qualname__


@pytest.mark.parametrize(("module", "number"), [(compiled_loops, "_HALF"), (entropy_blocks, "_HIDDEN")])
def test_a_loop_is_named_by_numbers_of_the_functions_that_it_calls(
    module: object, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = named()
    assert before == named() and before.startswith("_run_on_")
    monkeypatch.setattr(module, number, F(3.25))
    assert before != named()


def test_a_loop_is_named_by_the_source_of_the_functions_that_it_calls() -> None:
    made = made_of(RUN_ON)
    assert all(f"def {name}(" in made for name in ("_run_on", "_exp_line", "_exp_of", "_largest_bits"))
