"""Several tokens fed to a filled cache give what one forward gives, in every family, form and way of running."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, ResetState
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.models.recurrence import outputs
from segregation.models.scan_choice import use_scans
from segregation.models.scan_inputs import ScanCall, as_held

FAMILIES = ("recurrentgemma", "jamba", "zamba", "mamba")
PIECES = [(6, 6), (6, 1, 2, 3), (20, 3, 7), (2, 2, 2, 2)]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, build: Any) -> HybridModel:
    return build(request.param)


def batch(model: HybridModel, length: int, padding: int = 0) -> dict[str, Tensor]:
    """Two rows of random tokens, the second with padding at the left."""
    ids = torch.randint(3, 259, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    if model.family.cache == "past_key_values":  # the others take no positions
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return given


def pieces_of(given: dict[str, Tensor], lengths: tuple[int, ...]) -> list[dict[str, Tensor]]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [
        {name: t[:, (0 if name == "attention_mask" else s) : s + n] for name, t in given.items()}
        for s, n in zip(starts, lengths, strict=True)
    ]


def in_pieces(model: HybridModel, given: dict[str, Tensor], lengths: tuple[int, ...]) -> Tensor:
    cache = model.new_cache()
    parts = [
        model.trace(**piece, past_key_values=cache, use_cache=True, trace=False).logits
        for piece in pieces_of(given, lengths)
    ]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("lengths", PIECES)
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("form", ["fast", "audit", "transformers"])
@torch.no_grad()
def test_pieces_are_one_forward(model: HybridModel, lengths: tuple[int, ...], padding: int, form: Any) -> None:
    use_scans(model, form)
    given = batch(model, sum(lengths), min(padding, lengths[0] - 1))
    real = given["attention_mask"].bool()
    whole = model.trace(**given, trace=False).logits
    assert_close(in_pieces(model, given, lengths)[real], whole[real], atol=1e-5, rtol=0)
    use_scans(model, "fast")


@torch.no_grad()
def test_padding_may_reach_into_the_second_piece(model: HybridModel) -> None:
    given = batch(model, 12, 8)
    real = given["attention_mask"].bool()
    whole = model.trace(**given, trace=False).logits
    assert_close(in_pieces(model, given, (6, 6))[real], whole[real], atol=1e-5, rtol=0)


@torch.no_grad()
def test_plain_calls_of_the_wrapped_module_go_on_as_well(model: HybridModel) -> None:
    given = batch(model, 12, 2)
    model.reset()
    real = given["attention_mask"].bool()
    whole = model.hf_model(**given).logits
    model.reset()
    cache = model.new_cache()
    parts = [model.hf_model(**p, past_key_values=cache, use_cache=True).logits for p in pieces_of(given, (6, 6))]
    assert_close(torch.cat(parts, dim=1)[real], whole[real], atol=1e-5, rtol=0)


@torch.no_grad()
def test_states_read_after_a_piece_are_those_of_one_forward(model: HybridModel) -> None:
    """After 6 tokens and 2 more: the second piece is shorter than the convolution's history."""
    given = batch(model, 8, 2)
    layer = model.recurrent_layers[-1]
    with model.trace(**given, use_cache=True):
        whole = model.state(layer).save()
    first, second = pieces_of(given, (6, 2))
    cache = model.new_cache()
    model.trace(**first, past_key_values=cache, use_cache=True, trace=False)
    with model.trace(**second, past_key_values=cache, use_cache=True):
        warm = model.state(layer).save()
    assert_close(warm.recurrent, whole.recurrent, atol=1e-5, rtol=1e-5)
    taps = min(warm.conv.shape[-1], whole.conv.shape[-1])
    assert_close(warm.conv[..., -taps:], whole.conv[..., -taps:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", "mamba"])
@torch.no_grad()
def test_the_recurrence_of_a_warm_piece_begins_with_the_state_before(family: str, build: Any) -> None:
    model = build(family)
    layer, given, cache = model.recurrent_layers[-1], batch(model, 12), model.new_cache()
    first, second = pieces_of(given, (6, 6))
    with model.trace(**first, past_key_values=cache, use_cache=True):
        before = model.state(layer).save()
    with model.trace(**second, past_key_values=cache, use_cache=True):
        recurrence = ScanCall.of(model, layer).recurrence().save()
    with model.trace(**given, use_cache=True):
        after = model.state(layer).save()
    assert_close(as_held(model, recurrence.initial), before.recurrent)
    assert_close(as_held(model, outputs(recurrence)[1]), after.recurrent, atol=1e-5, rtol=1e-5)


RULES = [
    AblateRecurrent("skip", during=Phase.PREFILL),
    AblateRecurrent("skip", during=Phase.DECODE),
    ResetState(every=4),
]


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", "mamba"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@torch.no_grad()
def test_rules_act_on_a_warm_piece_as_in_one_forward(family: str, rule: Any, build: Any) -> None:
    """6 tokens and 8 more: resets at 8 and 12 forget what the second piece starts from, tokens 6 and 7 read it."""
    model = build(family)
    edited = model.intervene(Plan(rule))
    given, lengths = batch(model, 14), torch.tensor([6, 6])
    layer = model.recurrent_layers[-1]
    with edited.trace(**given, use_cache=True, prompt_lengths=lengths):
        state = edited.state(layer).save()
        whole = edited.output.logits.save()
    plain = model.trace(**given, trace=False).logits
    cache, parts = model.new_cache(), []
    for piece in pieces_of(given, (6, 8)):
        with edited.trace(**piece, past_key_values=cache, use_cache=True, prompt_lengths=lengths):
            warm = edited.state(layer).save()
            logits = edited.output.logits.save()
        parts.append(logits)
    assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
    assert_close(warm.recurrent, state.recurrent, atol=1e-5, rtol=1e-5)
    assert (plain - whole).abs().max() > 1e-2


@torch.no_grad()
def test_generate_goes_on_from_a_cache_with_several_tokens(build: Any) -> None:
    """transformers' generate, given a filled cache and a longer prompt, feeds the rest of it at once."""
    for family in ("recurrentgemma", "jamba", "zamba"):
        model = build(family)
        ids = torch.randint(3, 259, (2, 12))
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        whole = model.generate(ids, **options)
        cache = model.new_cache()
        model.trace(ids[:, :7], past_key_values=cache, use_cache=True, trace=False)
        with model.generate(ids, past_key_values=cache, **options) as tracer:
            warm = tracer.result.save()
        assert torch.equal(torch.as_tensor(whole), warm)


def test_gradients_flow_back_into_the_first_piece(build: Any) -> None:
    """Jamba, 5 + 7 tokens: the state between them carries the gradient of the second piece's own weights only."""
    model = build("jamba")
    given = batch(model, 12)
    with torch.no_grad():
        whole = model.trace(**given, trace=False).logits
    cache = model.new_cache()
    first, second = pieces_of(given, (5, 7))
    with torch.no_grad():
        model.trace(**first, past_key_values=cache, use_cache=True, trace=False)
    logits = model.trace(**second, past_key_values=cache, use_cache=True, trace=False).logits
    assert_close(logits.detach(), whole[:, 5:], atol=1e-5, rtol=0)
    logits.square().mean().backward()
    gradient = model.mixer(model.recurrent_layers[0])._module.in_proj.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
