from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from nnsight import save
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from segregation.errors import ModelError
from segregation.interventions.heads import entropy, l2
from segregation.models.attention import AttentionCall
from segregation.models.entropy_attention import (
    HARMLESS,
    NAME,
    Asked,
    attention,
    padding,
    use_entropy_attention,
)
from segregation.models.entropy_chunks import attend
from segregation.models.hybrid import HybridModel
from tests.conftest import random_module
from tests.models.test_entropy_forms import BOTH, SHAPES, call, in_fp64
from tests.tiny import CONFIGS

WITH_ATTENTION = [name for name in CONFIGS if CONFIGS[name].get("num_attention_heads", 4)]


@pytest.fixture(autouse=True)
def _known() -> None:
    use_entropy_attention()


def logits(module: torch.nn.Module, implementation: str, ids: Tensor, mask: Tensor | None) -> Tensor:
    module.set_attn_implementation(implementation)
    with torch.no_grad():
        found = module(ids, attention_mask=mask).logits
    return found if mask is None else found[mask.bool()]


DELTA_RULES = ("qwen3_next", "qwen3_5", "kimi_linear", "olmo_hybrid")
"""Families that make more of a rounding: logits of qwen3_5 are 6e-6 of them from fp64 under any attention."""


def assert_near_sdpa(family: str, under: Mapping[str, Tensor]) -> None:
    """That ours is as near to sdpa as rounding is; with a delta rule, about as near as eager attention."""
    ours, eager = (float((under[name] - under["sdpa"]).abs().max()) for name in (NAME, "eager"))
    rounding = 3e-6 * max(1.0, float(under["sdpa"].abs().max()))
    assert ours < (max(rounding, min(4 * eager, 5e-5)) if family in DELTA_RULES else rounding)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_every_family_computes_what_it_does_under_sdpa(family: str) -> None:
    module = random_module(family)
    ids = torch.randint(3, 200, (2, 50), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[0, :7] = 0
    for given in (None, mask):
        assert_near_sdpa(family, {name: logits(module, name, ids, given) for name in ("sdpa", "eager", NAME)})


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_every_family_decodes_what_it_does_under_sdpa(family: str, tokenizer: object) -> None:
    model = HybridModel(random_module(family), tokenizer, {})
    under = {}
    for name in ("sdpa", "eager", NAME):
        model.hf_model.set_attn_implementation(name)
        with torch.no_grad():
            out = model.generate(
                ["a prompt of more tokens than the window", "short"],
                **{"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False},
                output_logits=True,
                return_dict_in_generate=True,
            )
        under[name] = torch.stack(out.logits)
    assert_near_sdpa(family, under)


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
