"""The one view of three scans against what the scans themselves return, and against transformers' own code."""

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
from nnsight import save
from torch import Tensor
from transformers.models.jamba import modeling_jamba

from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, ResetState
from segregation.interventions.rules import Plan
from segregation.models.family import families
from segregation.models.hybrid import HybridModel
from segregation.models.recurrence import Recurrence, outputs, states_after, walk
from segregation.models.scan_inputs import ScanCall, as_held
from tests.tiny import CONFIGS

READABLE = [
    family.name
    for family in families().values()
    if family.scan is not None and "recurrence" not in family.cannot and family.name in CONFIGS
]


@pytest.fixture(scope="module", params=READABLE)
def any_scan(request: pytest.FixtureRequest, build: Callable[..., HybridModel]) -> HybridModel:
    """Every family that can be read as a recurrence; those that clamp dt in prefill only, without the clamp."""
    clamp = next(family for family in families().values() if family.name == request.param).clamps_prefill
    return build(request.param, **({clamp: 1e-9} if clamp else {}))


TEXT = "abc defgh ij abc klm defgh, and some more of it"


def read(model: HybridModel, *inputs, **kwargs) -> Mapping[int, tuple[Recurrence, Tensor]]:
    """Per layer what the scan was given, and what it returned."""
    found = {}
    with torch.no_grad(), model.trace(*inputs, **kwargs):
        kept = save(found)
        for layer in model.recurrent_layers:
            scan = ScanCall.of(model, layer)
            kept[layer] = scan.recurrence(), scan.emitted().clone()
    return kept


def emitted(recurrence: Recurrence) -> Tensor:
    """What the scan should return: y_t + D x_t, gated."""
    found, _ = outputs(recurrence)
    found = found if recurrence.skip is None else found + recurrence.skip
    return found if recurrence.gate is None else found * recurrence.gate


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of each number, where it is not the difference of much larger ones."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_the_scan_returns_what_its_inputs_say(any_scan: HybridModel):
    for recurrence, output in read(any_scan, [TEXT, TEXT[:9]]).values():  # the second is padded
        assert_near(emitted(recurrence), output)


def test_one_token_after_a_filled_cache_is_seen_alike(any_scan: HybridModel):
    tokens = torch.tensor([any_scan.encode(TEXT)])
    whole = read(any_scan, tokens)
    with torch.no_grad():
        any_scan.reset()
        cache = any_scan.new_cache()
        any_scan.hf_model(tokens[:, :-1], past_key_values=cache, use_cache=True)
    at = torch.tensor([[tokens.shape[1] - 1]])
    step = read(any_scan, tokens[:, -1:], past_key_values=cache, position_ids=at, use_cache=True)
    for layer in any_scan.recurrent_layers:
        (one, output), (all_of_it, outputs_of_all) = step[layer], whole[layer]
        assert one.write.shape[1] == 1 and not one.begins and all_of_it.begins
        assert_near(emitted(one), output)
        assert_near(output, outputs_of_all[:, -1:])
        for name in ("step", "write", "keys", "reads"):
            torch.testing.assert_close(
                getattr(one, name)[:, 0], getattr(all_of_it, name)[:, -1], atol=1e-5, rtol=1e-4, msg=name
            )


def test_what_plans_do_to_a_scan_is_seen(any_scan: HybridModel):
    """Resets, which are no input of the Mambas' scan, and skipped tokens, which write nothing."""
    for rule in (ResetState(every=5), AblateRecurrent("skip", during=Phase.LAST)):
        for recurrence, output in read(any_scan.intervene(Plan(rule)), TEXT, prompt_lengths=[20]).values():
            assert_near(emitted(recurrence), output)
            if isinstance(rule, ResetState):
                first = 0 if any_scan.family.scan == "rg_lru" else 5
                assert recurrence.reset.nonzero()[:, 1].tolist() == list(range(first, recurrence.reset.shape[1], 5))
            else:
                assert not recurrence.write[:, 19].any() and bool((recurrence.decay(19) == 1).all())


def test_the_output_before_mambas_gate_is_that_of_a_scan_without_gate(build, monkeypatch):
    model, ungated = build("jamba"), []
    scan = modeling_jamba.mamba_selective_scan
    original = getattr(scan, "__wrapped__", scan)

    def watched(*args, **options):
        ungated.append(original(*args, **{**options, "z": None, "return_last_state": False}))
        return scan(*args, **options)

    monkeypatch.setattr(modeling_jamba, "mamba_selective_scan", watched)
    for recurrence, _ in read(model, TEXT).values():
        assert_near(emitted(dataclasses.replace(recurrence, gate=None))[..., 0], ungated.pop(0).transpose(1, 2))


def test_states_of_disjoint_writers_and_of_what_was_there_add_up():
    generator = torch.Generator().manual_seed(0)
    step, write = (-torch.rand(2, 9, 4, generator=generator), torch.randn(2, 9, 4, 3, generator=generator))
    keys, reads = (torch.randn(2, 9, 2, 5, generator=generator) for _ in range(2))
    initial = torch.randn(2, 4, 3, 5, generator=generator)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    whole = Recurrence(step, torch.ones(4, 1), reset, write, keys, reads, initial=initial)
    some = torch.rand(2, 9, generator=generator) < 0.5
    alone = dataclasses.replace(whole, initial=None)
    parts = [outputs(whole, torch.zeros_like(some)), outputs(alone, some), outputs(alone, ~some)]
    for got, expected in zip(map(sum, zip(*parts, strict=True)), outputs(whole), strict=True):
        torch.testing.assert_close(got, expected)


def test_states_after_chosen_tokens_are_those_of_the_walk(any_scan: HybridModel):
    for layer, (recurrence, _) in read(any_scan, TEXT).items():
        walked = list(walk(recurrence))
        assert torch.equal(states_after(recurrence, [0, 7, 20]), torch.stack([walked[at] for at in (0, 7, 20)]))
        with torch.no_grad(), any_scan.trace(TEXT):
            state = save(any_scan.state(layer).recurrent)
        torch.testing.assert_close(as_held(any_scan, walked[-1]), state, atol=1e-5, rtol=1e-5)
