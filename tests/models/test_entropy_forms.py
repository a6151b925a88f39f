"""Forms of attention that measures its rows, against full patterns in fp64, and where each of them is taken."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from segregation.interventions.heads import entropy, l2
from segregation.models import compiled_loops, entropy_attention, entropy_blocks
from segregation.models.attention import AttentionCall
from segregation.models.entropy_blocks import RunningSoftmax, attend_in_blocks, measure_in_blocks, measures_in_blocks
from segregation.models.entropy_chunks import CHUNKS, HIDDEN, Measure, attend, write_scores
from tests.conftest import SHIPPED_FEWEST_KEYS
from tests.tiny import WINDOW

Form = Callable[..., tuple[Tensor, dict[Measure, Tensor]]]
BOTH: tuple[Measure, Measure] = ("entropy", "l2")


def call(
    queries: int,
    *,
    past: int = 0,
    heads: int = 4,
    kv: int = 2,
    window: int | None = None,
    pads: tuple[int, ...] = (0, 0),
    d_head: int = 8,
    d_value: int = 8,
    spread: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> AttentionCall:
    torch.manual_seed(0)
    keys, batch = past + queries, len(pads)
    mask = torch.arange(keys) >= torch.tensor(pads)[:, None]
    query, key = torch.randn(batch, queries, heads, d_head) * spread, torch.randn(batch, kv, keys, d_head) * spread
    value = torch.randn(batch, kv, keys, d_value)
    given = [one.to(dtype) for one in (query.transpose(1, 2), key, value)]
    return AttentionCall(*given, mask if any(pads) else None, 0.85 * d_head**-0.5, window)


def in_fp64(given: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the entropy and the norm, from a full pattern that is made in one piece; unseen rows are zero."""
    batch, heads, queries, _ = given.query.shape
    keys, group = given.key.shape[2], heads // given.key.shape[1]
    key, value = (one.double().repeat_interleave(group, 1) for one in (given.key, given.value))
    src, dest = torch.arange(keys), torch.arange(keys - queries, keys)[:, None]
    seen = ((src <= dest) & (src > dest - (given.window or keys))).expand(batch, 1, queries, keys)
    seen = seen if given.mask is None else seen & given.mask[:, None, None]
    scores = given.query.double() @ key.mT * given.scaling
    pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    output = (pattern @ value).transpose(1, 2)
    return output, torch.special.entr(pattern).sum(-1), pattern.norm(dim=-1)


SHAPES = {
    "plain": {"queries": 40},
    "one query": {"queries": 1},
    "one key": {"queries": 1, "heads": 2},
    "chunk borders": {"queries": 2 * CHUNKS["cpu"][1] + 1},
    "exactly a chunk": {"queries": CHUNKS["cpu"][1]},
    "after a cache": {"queries": 37, "past": 50},
    "window": {"queries": 90, "window": WINDOW},
    "window of one": {"queries": 40, "window": 1},
    "window wider than a chunk": {"queries": 150, "window": 70},
    "window after a cache": {"queries": 40, "past": 21, "window": WINDOW},
    "padding": {"queries": 70, "pads": (0, 41)},
    "padding and window": {"queries": 70, "pads": (3, 41), "window": WINDOW},
    "padding that is cached": {"queries": 5, "past": 20, "pads": (7, 0, 11)},
    "one key head": {"queries": 50, "heads": 6, "kv": 1},
    "a key head each": {"queries": 50, "kv": 4},
    "values of another width": {"queries": 50, "d_value": 6},
    "sharp": {"queries": 50, "spread": 12.0},
}


@pytest.fixture(params=["chunks", "blocks", "small blocks"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """The forms that attention takes on a CPU."""
    if request.param == "small blocks":
        monkeypatch.setattr(entropy_blocks, "SCORES", 1)
        monkeypatch.setattr(entropy_blocks, "KEYS", 13)
        monkeypatch.setattr(entropy_blocks, "FEWEST", 10)
    return attend if request.param == "chunks" else attend_in_blocks


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_measures_are_those_of_a_full_pattern(form: Form, shape: str) -> None:
    given = call(**SHAPES[shape])
    queries = given.query.shape[2]
    output, found = form(given, 0, queries, BOTH)
    expected, exact, norm = in_fp64(given)
    assert output.isfinite().all() and found["entropy"].isfinite().all()
    largest = float((given.query.norm(dim=-1).max() * given.key.norm(dim=-1).max()) * given.scaling)
    noise = 1e-7 * max(20.0, largest)  # of fp32 scores
    assert (output - expected).abs().max() < noise
    assert (found["entropy"] - exact).abs().max() < noise
    assert (found["l2"] - norm).abs().max() < noise


def test_scores_of_a_bf16_model_are_fp32(form: Form) -> None:
    given = call(200, spread=6.0, dtype=torch.bfloat16)
    found = form(given, 0, 200, BOTH)[1]
    _, exact, norm = in_fp64(given)
    assert (found["entropy"] - exact).abs().max() < 1e-5
    assert (found["l2"] - norm).abs().max() < 1e-5
    rounded = (given.query @ given.key.repeat_interleave(2, 1).mT * given.scaling).float()
    pattern = rounded.masked_fill(~torch.ones(200, 200).tril().bool(), -torch.inf).softmax(-1)
    assert (entropy(pattern) - exact).abs().max() > 1e-2  # what scores in bf16 would give


def test_rows_that_see_no_key_are_zero(form: Form) -> None:
    given = call(40, pads=(0, 25), window=WINDOW)
    output, found = form(given, 0, 40, BOTH)
    assert output[1, :25].eq(0).all() and output[1, 25:].abs().min() > 0
    for one in BOTH:
        assert found[one][1, :, :25].eq(0).all()


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (69, 70), (30, 35), (10, 68), (32, 64)])
def test_only_the_rows_that_are_asked_for_are_measured(form: Form, start: int, stop: int) -> None:
    given = call(70, window=WINDOW)
    whole, everything = form(given, 0, 70, BOTH)
    output, found = form(given, start, stop, ["entropy"])
    assert torch.equal(output, whole) and list(found) == ["entropy"]
    assert torch.equal(found["entropy"], everything["entropy"][..., start:stop])
    assert torch.equal(form(given)[0], whole)


def test_a_nan_is_not_lost(form: Form) -> None:
    for sign in (1.0, -1.0):
        given = call(60, window=WINDOW)
        given.key[0, 1, 30, 0] = torch.tensor(torch.nan).copysign(torch.tensor(sign))
        output, found = form(given, 0, 60, BOTH)
        hit = torch.zeros(2, 60, 4, dtype=torch.bool)
        hit[0, 30 : 30 + WINDOW, 2:] = True  # the queries and heads that see this key
        assert torch.equal(output.isnan().any(-1), hit)
        assert all(torch.equal(found[one].isnan(), hit.transpose(1, 2)) for one in BOTH)


def test_a_running_softmax_is_that_of_all_blocks_in_fp64() -> None:
    torch.manual_seed(0)
    for spread, widths in product((0.0, 1.0, 8.0, 60.0), ((1,), (500,), (7, 1, 33, 8), (2000, 2099))):
        scores = torch.randn(6, sum(widths)) * spread - 3.0
        scores[torch.rand_like(scores) < 0.2] = HIDDEN
        scores[1, : widths[0]] = HIDDEN  # sees nothing at first
        scores[2] = HIDDEN
        scores[3] = torch.arange(scores.shape[1]) * 2.0  # the largest is always in the next block
        scores[4] = scores[3].flip(0)
        exact = scores.double().masked_fill(scores <= HIDDEN, -torch.inf).softmax(-1).nan_to_num(0.0)
        running, sums = RunningSoftmax(len(scores)), torch.zeros(len(scores), 1)
        for block in scores.split(widths, dim=1):
            new = block.contiguous()
            factor = running.take(new)
            assert new[block <= HIDDEN].eq(0).all()
            sums = sums * factor + new @ torch.ones(new.shape[1], 1)
        some = exact.sum(-1) > 0
        entropies, norms = running.measured("entropy"), running.measured("l2")
        assert_close((sums[:, 0] / running.total)[some], torch.ones(int(some.sum())), atol=2e-6, rtol=0)
        noise = 1e-7 * max(20.0, 6 * spread)  # of s - m in fp32
        assert_close(entropies.double(), torch.special.entr(exact).sum(-1), atol=noise, rtol=1e-6)
        assert_close(norms.double(), exact.norm(dim=-1), atol=1e-9, rtol=noise)
        assert entropies[2] == norms[2] == 0 and running.total[2] == 1


def test_rows_are_measured_without_an_output_under_any_boolean_mask() -> None:
    torch.manual_seed(1)
    for shape in (SHAPES["plain"], SHAPES["window after a cache"], SHAPES["padding and window"], {"queries": 700}):
        given = call(**shape)
        queries, keys = given.query.shape[2], given.key.shape[2]
        whole = given.visible(0, queries)
        whole = torch.nn.functional.pad(whole, (keys - whole.shape[-1], 0)).expand(2, 1, queries, keys).clone()
        own = torch.rand(2, 1, queries, keys) < 0.5  # which also lets queries see what comes later
        for mask in (given.mask, whole, own):
            under = replace(given, mask=mask, window=given.window if mask is not own else None)
            pattern = under.pattern()
            for measure, found in (("entropy", entropy(pattern)), ("l2", l2(pattern))):
                for start, stop in ((0, queries), (3, queries - 2), (queries - 1, queries)):
                    rows = measure_in_blocks(under, start, stop, measure)
                    assert_close(rows, found[..., start:stop], atol=4e-6, rtol=0)
    assert measures_in_blocks(given)
    assert not measures_in_blocks(replace(given, mask=torch.zeros(2, 1, queries, keys)))
    assert not measures_in_blocks(replace(given, key=given.key.clone().requires_grad_()))


def test_blocks_are_taken_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_blocks, "FEWEST_KEYS", SHIPPED_FEWEST_KEYS)
    for given, in_blocks in ((call(9, past=54), False), (call(9, past=55), True)):
        assert entropy_attention._form(given) is (attend_in_blocks if in_blocks else attend)
        assert measures_in_blocks(given) is in_blocks
    for threads, form in ((2, attend_in_blocks), (3, attend)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert entropy_attention._form(given) is form and measures_in_blocks(given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(compiled_loops, "numba", None)
    assert entropy_attention._form(given) is attend and not measures_in_blocks(given)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_defaults_of_torch_change_nothing(form: Form, default: torch.dtype) -> None:
    given = call(70, window=WINDOW)
    expected, rows = form(given, 0, 70, BOTH), measure_in_blocks(given, 0, 70, "l2")
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            found, again = form(given, 0, 70, BOTH), measure_in_blocks(given, 0, 70, "l2")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found[0], expected[0]) and torch.equal(again, rows)
    assert all(torch.equal(found[1][one], expected[1][one]) for one in BOTH)


def test_keys_that_no_window_reaches_are_not_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def spy(call: AttentionCall, first: int, last: int, begin: int, scores: Tensor) -> None:
        seen.append((last - first, scores.shape[-1]))
        write_scores(call, first, last, begin, scores)

    monkeypatch.setattr(entropy_blocks, "write_scores", spy)
    given = call(2000, window=64, pads=(0,))
    measure_in_blocks(given, 0, 2000, "l2")
    assert sum(queries for queries, _ in seen) == 2000  # one block of keys each
    assert max(keys for _, keys in seen) < 64 + max(queries for queries, _ in seen)


def test_a_mask_may_show_later_keys_to_the_last_query_alone() -> None:
    given = call(40, pads=(0,))
    own = torch.ones(40, 40, dtype=torch.bool).tril()
    own[-2, -1] = own[7, 20] = True
    under = replace(given, mask=own[None, None])
    for start, stop in ((0, 40), (5, 8), (38, 39)):
        found = measure_in_blocks(under, start, stop, "entropy")
        assert_close(found, entropy(under.pattern())[..., start:stop], atol=4e-6, rtol=0)


def test_nothing_is_measured_of_no_rows_and_no_keys() -> None:
    assert measure_in_blocks(call(70, pads=()), 0, 70, "entropy").shape == (0, 4, 70)
    running = RunningSoftmax(2)
    running.take(torch.tensor([[1.0, 1.0], [HIDDEN, -torch.inf]]))
    assert running.take(torch.empty(2, 0)).tolist() == [[1.0], [1.0]]
    assert_close(running.measured("entropy"), torch.tensor([2.0, 1.0]).log())


@pytest.mark.parametrize(
    ("shape", "queries", "keys"),
    [
        ({"queries": 4000, "heads": 8, "pads": (0,)}, 128, 512),
        ({"queries": 4000, "heads": 8, "pads": (0,), "window": 512}, 64, 1024),
        ({"queries": 1, "past": 4000, "heads": 8, "pads": (0,)}, 1, 4001),
        ({"queries": 900, "heads": 8, "pads": (0,) * 100}, 16, 512),
    ],
)
def test_a_block_has_the_most_queries_and_keys_that_are_aimed_at(shape: dict, queries: int, keys: int) -> None:
    given = call(**shape)
    step = entropy_blocks._queries_at_once(given)
    assert (step, entropy_blocks._keys_at_once(given, step)) == (queries, keys)


def test_a_two_dimensional_mask_says_what_a_call_may_see() -> None:
    for window in (None, WINDOW):
        for queries, past in ((40, 0), (9, 30), (1, 15)):
            given = call(queries, past=past, window=window, pads=(3, 0))
            seen = given.visible(0, queries)
            src, dest = torch.arange(queries + past)[given.first_key(0) :], torch.arange(past, past + queries)[:, None]
            expected = (src <= dest) & (src > dest - (window or 999)) & (src >= torch.tensor([3, 0])[:, None, None])
            assert torch.equal(seen, expected[:, None])
