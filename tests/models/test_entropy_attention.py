from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from nnsight import save
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from segregation.errors import ModelError
from segregation.interventions.heads import entropy, l2
from segregation.models import compiled_loops, entropy_attention, entropy_blocks
from segregation.models.attention import AttentionCall
from segregation.models.entropy_attention import (
    CHUNKS,
    HARMLESS,
    HIDDEN,
    NAME,
    Asked,
    Measure,
    attend,
    attention,
    padding,
    use_entropy_attention,
)
from segregation.models.entropy_blocks import RunningSoftmax, attend_in_blocks, measure_in_blocks, measures_in_blocks
from segregation.models.hybrid import HybridModel
from tests.conftest import random_module
from tests.tiny import CONFIGS, WINDOW

WITH_ATTENTION = [name for name in CONFIGS if CONFIGS[name].get("num_attention_heads", 4)]
Form = Callable[..., tuple[Tensor, dict[Measure, Tensor]]]
BOTH: tuple[Measure, Measure] = ("entropy", "l2")


@pytest.fixture(autouse=True)
def _known() -> None:
    use_entropy_attention()


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


def test_blocks_are_taken_where_numba_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = call(9)
    assert entropy_attention._form(given) is attend_in_blocks
    monkeypatch.setattr(compiled_loops, "numba", None)
    assert entropy_attention._form(given) is attend


@pytest.mark.parametrize(
    ("shape", "queries", "keys"),
    [
        ({"queries": 4000, "heads": 8, "pads": (0,)}, 128, 512),
        ({"queries": 4000, "heads": 8, "pads": (0,), "window": 512}, 64, 1024),
        ({"queries": 1, "past": 4000, "heads": 8, "pads": (0,)}, 1, 4001),
        ({"queries": 900, "heads": 8, "pads": (0,) * 100}, 16, 512),
    ],
)
def test_a_block_is_as_large_as_the_cache_of_the_cpu_holds(shape: dict, queries: int, keys: int) -> None:
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


def logits(module: torch.nn.Module, implementation: str, ids: Tensor, mask: Tensor | None) -> Tensor:
    module.set_attn_implementation(implementation)
    with torch.no_grad():
        found = module(ids, attention_mask=mask).logits
    return found if mask is None else found[mask.bool()]


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_every_family_computes_what_it_does_under_sdpa(family: str) -> None:
    module = random_module(family)
    ids = torch.randint(3, 200, (2, 50), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[0, :7] = 0
    for given in (None, mask):
        under = {name: logits(module, name, ids, given) for name in ("sdpa", NAME)}
        assert (under[NAME] - under["sdpa"]).abs().max() < 3e-6 * max(1.0, float(under["sdpa"].abs().max()))


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_every_family_decodes_what_it_does_under_sdpa(family: str, tokenizer: object) -> None:
    model = HybridModel(random_module(family), tokenizer, {})
    under = []
    for name in ("sdpa", NAME):
        model.hf_model.set_attn_implementation(name)
        with torch.no_grad():
            out = model.generate(
                ["a prompt of more tokens than the window", "short"],
                **{"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False},
                output_logits=True,
                return_dict_in_generate=True,
            )
        under.append(torch.stack(out.logits))
    assert (under[0] - under[1]).abs().max() < 3e-6 * max(1.0, float(under[0].abs().max()))


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_measures_are_those_of_eager_weights(family: str, tokenizer: object) -> None:
    model = HybridModel(random_module(family), tokenizer, {})
    model.hf_model.set_attn_implementation("eager")
    ids = torch.randint(3, 200, (1, 45), generator=torch.Generator().manual_seed(0))
    for layer in model.attention_layers:
        with torch.no_grad(), model.trace(ids):
            given = save(model.attention_call(layer))
            returned = save(model.attention_output(layer))
        output, weights = returned
        ours, found = attend(replace(given, mask=None), 0, 45, BOTH)
        assert (ours - output).abs().max() < 2e-6 * max(1.0, float(output.abs().max()))
        assert (found["entropy"] - entropy(weights)).abs().max() < 2e-6
        assert (found["l2"] - l2(weights)).abs().max() < 1e-6


def given_to(tensors: Sequence[Tensor], mask: Tensor | None = None, is_causal: bool = True, **kwargs: object) -> Tensor:
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, is_causal  # type: ignore[assignment]
    output, weights = attention(module, *tensors, mask, **{"scaling": 0.3, **kwargs})  # type: ignore[arg-type]
    assert weights is None
    return output


@pytest.mark.parametrize("shape", ["plain", "window", "padding and window", "after a cache", "padding that is cached"])
def test_a_run_that_keeps_gradients_has_those_of_a_full_pattern(shape: str) -> None:
    given = call(**SHAPES[shape])
    of_ours, of_full = (
        [one.clone().requires_grad_() for one in (given.query, given.key, given.value)] for _ in range(2)
    )
    asked = Asked(2, 5, {"entropy"})
    output = given_to(of_ours, given.mask, scaling=given.scaling, sliding_window=given.window, asked=asked)
    expected, measured, _ = in_fp64(AttentionCall(*of_full, given.mask, given.scaling, given.window))
    assert (output - expected).abs().max() < 2e-6
    assert (asked.rows("entropy", 2, 5) - measured[..., 2:5]).abs().max() < 5e-6
    output.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(of_ours, of_full, strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).abs().max() < 1e-4 * max(1.0, float(other.grad.abs().max()))


def test_what_is_not_understood_is_refused() -> None:
    plain = call(20)
    tensors = plain.query, plain.key, plain.value
    for name in HARMLESS:
        assert torch.equal(given_to(tensors, **{name: torch.ones(20)}), given_to(tensors))
    for wrong in (
        {"s_aux": torch.zeros(4)},
        {"softcap": 30.0},
        {"position_bias": torch.zeros(1, 4, 20, 20)},
        {"output_attentions": True},
        {"dropout": 0.1},
        {"is_causal": False},
        {"cu_seq_lens_q": torch.zeros(2)},
    ):
        with pytest.raises(ModelError, match=f"{next(iter(wrong))}.* not understood .*sdpa"):
            given_to(tensors, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"is_causal=False is not understood"):
        given_to(tensors, is_causal=False)


@pytest.mark.parametrize("shape", [(2, 1, 20, 20), (2, 19)])
def test_a_mask_that_is_not_a_column_for_each_key_is_refused(shape: tuple[int, ...]) -> None:
    plain = call(20)
    with pytest.raises(ModelError, match=r"a mask of shape .* for 20 keys is not understood"):
        given_to((plain.query, plain.key, plain.value), torch.ones(shape, dtype=torch.bool))


def test_the_mask_is_the_padding_of_the_keys_that_are_left() -> None:
    some = torch.arange(12) >= torch.tensor([[3], [0]])
    assert padding(2, 12, 12) is None
    assert padding(2, 12, 12, attention_mask=some[1:].expand(2, 12)) is None
    assert torch.equal(padding(2, 12, 12, attention_mask=some), some)
    assert torch.equal(padding(2, 1, 10, 11, 2, attention_mask=some), some[:, 2:])
    assert padding(2, 1, 8, 11, 4, attention_mask=some[:, :].clone().fill_(True)) is None


def test_patterns_of_another_kind_are_refused() -> None:
    with pytest.raises(ModelError, match=r"a cache that grows.* got queries 5\.\.6, keys 0\.\.64"):
        padding(1, 1, 64, 5, 0)
    with pytest.raises(ModelError, match=r"and a pattern of its own"):
        padding(1, 9, 9, allow_is_causal_skip=False)
    with pytest.raises(ModelError, match=r"one column for each of the 12 tokens read so far, got 9"):
        padding(2, 1, 12, 11, 0, attention_mask=torch.zeros(2, 9, dtype=torch.bool))


def test_packed_sequences_are_refused_by_a_whole_model() -> None:
    module = random_module("jamba")
    module.set_attn_implementation(NAME)
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    with pytest.raises(ModelError, match=r"a pattern of its own"):
        module(torch.arange(3, 10)[None], position_ids=packed, use_cache=False)


def test_memory_is_linear_in_the_number_of_tokens() -> None:
    """What is allocated at once is far less than a pattern, and less than twice as much for twice the tokens."""
    peaks = {}
    for queries in (1024, 2048):
        given = call(queries, pads=(0,), window=256)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            attend(given, 0, queries, BOTH)
        held = peak = 0
        for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore
            held += event.nbytes() if event.name() == "[memory]" else 0
            peak = max(peak, held)
        peaks[queries] = peak
    assert 0 < peaks[2048] < 2.2 * peaks[1024]
    assert peaks[2048] < 4 * 4 * 2048 * 2048 / 8  # an eighth of one pattern of four heads
