"""What does not fit is refused before anything runs, and what is read together is what fits."""

from weakref import WeakKeyDictionary

import pytest

from segregation.errors import ModelError, PlanError
from segregation.models.hybrid import HybridModel
from segregation.models.memory_needed import remembered
from segregation.prompts.sample import Sample
from segregation.runs import fitting
from segregation.runs.fitting import check_batch_size, fitting_batch_size, needs, read_together
from segregation.runs.generate import generate
from segregation.runs.loglikelihood import loglikelihood

SAMPLE = Sample("a", "abcdefgh ijkl " * 3, " x")
NEW = 5


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda _: free)


@pytest.fixture
def length(model: HybridModel) -> int:
    """Tokens of the sample with its new ones."""
    return len(model.encode(SAMPLE)) + NEW


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_a_row_needs_what_is_remembered_of_it(model: HybridModel, tokens: int) -> None:
    kept = needs(model).of_row(tokens)
    exact = remembered(model, 1, tokens)
    assert exact <= kept <= exact + needs(model).token  # with a window, the newest token is not kept


def test_a_batch_that_does_not_fit_says_how_many_rows_do(model, length, monkeypatch) -> None:
    found = needs(model)
    leave(monkeypatch, found.reading * length + 3 * found.of_row(length))
    with pytest.raises(ModelError, match=r"batch_size=4 rows of \d+ tokens need .* use batch_size=3 or less"):
        generate(model, [SAMPLE], max_new_tokens=NEW, batch_size=4)
    with pytest.raises(ModelError, match=r"batch_size=9 rows"):
        loglikelihood(model, [SAMPLE], batch_size=9)
    assert len(list(generate(model, [SAMPLE], max_new_tokens=NEW, batch_size=3))) == 1


def test_a_prompt_that_does_not_fit_says_how_long_it_may_be(model, length, monkeypatch) -> None:
    found = needs(model)
    leave(monkeypatch, found.row + (found.reading + found.token) * 9)
    with pytest.raises(ModelError, match=r"one row of \d+ tokens needs .* shorten the prompt to about 9 tokens"):
        generate(model, [SAMPLE], max_new_tokens=NEW)


def test_fewer_rows_run_where_the_usual_number_does_not_fit(model, length, monkeypatch) -> None:
    found = needs(model)
    assert fitting_batch_size(model, length, None) is None
    leave(monkeypatch, found.reading * length + 12 * found.of_row(length))
    assert fitting_batch_size(model, length, None) == 3
    (record,) = generate(model, [SAMPLE], max_new_tokens=NEW)
    assert record.provenance["batch_size"] == 3


def test_nothing_is_refused_where_memory_is_not_known(model, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda _: None)
    assert fitting_batch_size(model, 10**9, 10**9) == 10**9


def test_a_cpu_reads_prompts_of_about_one_length_together_up_to_some_tokens(model) -> None:
    assert list(read_together(model, [100, 20, 21, 23, 100, 22])) == [[1, 2, 5], [3], [0, 4]]
    assert list(read_together(model, [1200] * 5)) == [[0, 1], [2, 3], [4]]
    assert list(read_together(model, [2600, 2601])) == [[0], [1]]


def test_elsewhere_as_many_are_read_together_as_fit(model, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "on_cpu", lambda _: False)
    leave(monkeypatch, round(needs(model).reading * 250 / fitting.SPARE))
    assert list(read_together(model, [100, 20, 60, 40, 120])) == [[1, 3, 2], [0, 4]]
    assert list(read_together(model, [300, 10])) == [[1], [0]]


def test_what_a_model_needs_is_found_once(model, monkeypatch) -> None:
    needs(model)
    monkeypatch.setattr(fitting, "remembered", lambda *_: pytest.fail("measured again"))
    assert needs(model).window == model.window


def test_over_several_gpus_reading_has_the_fullest_one_and_rows_are_spread(model, length, monkeypatch) -> None:
    found = needs(model)
    free = {0: found.reading * length + 4 * found.of_row(length), 1: 10**12}
    monkeypatch.setattr(fitting, "_gpus", lambda _: list(free))
    monkeypatch.setattr(fitting, "_NEEDS", WeakKeyDictionary())
    monkeypatch.setattr(fitting.torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 10**13))
    for held in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(fitting.torch.cuda, held, lambda _gpu: 0)
    assert fitting.free_bytes(model) == free[0]
    assert fitting_batch_size(model, length, 8) == 8  # each GPU remembers half of a row
    with pytest.raises(ModelError, match=r"batch_size=9 rows .* use batch_size=8 or less"):
        fitting_batch_size(model, length, 9)


@pytest.mark.parametrize("size", [0, -3, 2.5, "8", True])
def test_a_batch_size_is_a_number_of_rows(size: object) -> None:
    with pytest.raises(PlanError, match="whole number of at least 1 row"):
        check_batch_size(size)
