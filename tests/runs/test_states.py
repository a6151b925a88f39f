"""States read in one forward and while decoding, against forwards over every prefix and plain PyTorch."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from segregation.errors import ModelError, PlanError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, ResetState
from segregation.interventions.rules import Plan
from segregation.interventions.token_rules import HideTokens
from segregation.models.channels import read_channel
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs.generate import generate
from segregation.runs.states import States, save_states, state_bytes, states
from tests.conftest import random_module

SAMPLES = [
    Sample("long", "abc defgh ij abc", "x", spans={"needle": ((3, 7),)}),
    Sample("short", "defghi", "x", spans={"needle": ((0, 2),)}),
]


def after_prefix(model: HybridModel, tokens: list[int]) -> dict[tuple[int, str], torch.Tensor]:
    """The states that the plain module leaves after reading these tokens at once."""
    with torch.no_grad():
        model.reset()
        cache = model.new_cache()
        model.hf_model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    found = {
        (layer, channel): read_channel(model, cache, layer, channel)[0].clone()
        for layer in model.recurrent_layers
        for channel in ("recurrent", "conv")
    }
    model.reset()
    return found


def read_tokens(model: HybridModel, one: States) -> list[int]:
    prompt = next(sample for sample in SAMPLES if sample.id == one.record.sample_id)
    return [*model.encode(prompt), *one.record.tokens]


def test_states_at_every_position_are_those_of_a_forward_over_the_prefix(any_scan: HybridModel):
    """Prompts of two lengths in one padded batch; from position 0, before which the convolution holds zeros."""
    for one in states(any_scan, SAMPLES, at="all", max_new_tokens=3):
        tokens = read_tokens(any_scan, one)
        assert one.positions == tuple(range(len(tokens) - 1))
        for i, position in enumerate(one.positions):
            for (layer, channel), expected in after_prefix(any_scan, tokens[: position + 1]).items():
                got = (one.recurrent if channel == "recurrent" else one.conv)[layer][i]
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_states_of_one_forward_are_those_of_reading_token_by_token(any_scan: HybridModel):
    (one,) = states(any_scan, SAMPLES[:1], at="all", layers=any_scan.recurrent_layers[1:2])
    (layer,) = one.recurrent
    cache = any_scan.new_cache()
    any_scan.reset()
    for i, token in enumerate(any_scan.encode(SAMPLES[0])):
        with torch.no_grad():
            any_scan.hf_model(
                torch.tensor([[token]]), position_ids=torch.tensor([[i]]), past_key_values=cache, use_cache=True
            )
        for channel, got in (("recurrent", one.recurrent[layer][i]), ("conv", one.conv[layer][i])):
            expected = read_channel(any_scan, cache, layer, channel)
            torch.testing.assert_close(got, expected[0], atol=1e-5, rtol=1e-4)
    any_scan.reset()


def test_reading_changes_nothing_and_states_are_copies(any_scan: HybridModel):
    plans = [Plan(), Plan(ResetState(every=4, during=Phase.DECODE))]
    found = list(states(any_scan, SAMPLES, plans, at=(2, -1), max_new_tokens=5))
    records = list(generate(any_scan, SAMPLES, plans, max_new_tokens=5))
    for one, record in zip(found, records, strict=True):
        assert dataclasses.replace(one.record, provenance={}) == dataclasses.replace(record, provenance={})
        assert one.positions[:2] == (2, record.prompt_tokens - 1)
        for tensor in one.recurrent.values():
            assert not any(torch.equal(a, b) for a, b in pairwise(tensor))


def test_states_are_those_that_the_plan_leaves(any_scan: HybridModel):
    """A skipped token leaves the state alone; one before which it is reset leaves what it writes."""
    skip = Plan(AblateRecurrent("skip", span="needle", during=Phase.PREFILL))
    (one,) = states(any_scan, SAMPLES[:1], skip, at=(3, 5, 7, -1))  # the needle is 4..7, after <bos>
    for layer in any_scan.recurrent_layers:
        before, inside, end, after = one.recurrent[layer]
        assert torch.equal(before, inside) and torch.equal(before, end) and not torch.equal(before, after)
    whole, cut = (next(iter(states(any_scan, SAMPLES[:1], p, at=(0, 1)))) for p in (Plan(), Plan(ResetState(1))))
    first = any_scan.recurrent_layers[0]
    assert torch.equal(whole.recurrent[first][0], cut.recurrent[first][0])
    assert not torch.equal(whole.recurrent[first][1], cut.recurrent[first][1])
    hidden = next(iter(states(any_scan, SAMPLES[:1], Plan(HideTokens("needle")), at=(-1,))))
    assert torch.equal(hidden.recurrent[first], next(iter(states(any_scan, SAMPLES[:1]))).recurrent[first])


def test_a_prompt_whose_prefill_is_one_token(any_scan: HybridModel):
    sample = Sample("two", " ", "x")
    tokens = any_scan.encode(sample)
    (one,) = states(any_scan, [sample], at="all")
    assert len(tokens) == 2
    for i in range(2):
        for (layer, channel), expected in after_prefix(any_scan, tokens[: i + 1]).items():
            got = (one.recurrent if channel == "recurrent" else one.conv)[layer][i]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_saved_states_are_joined_to_their_records(any_scan: HybridModel, tmp_path):
    found = list(states(any_scan, SAMPLES, at="all"))
    save_states(found, tmp_path / "states.safetensors")
    loaded = load_file(tmp_path / "states.safetensors")
    for one in found:
        assert loaded[f"positions/{one.record.key}"].tolist() == list(one.positions)
        for layer in any_scan.recurrent_layers:
            assert torch.equal(loaded[f"{layer}/recurrent/{one.record.key}"], one.recurrent[layer])
            assert torch.equal(loaded[f"{layer}/conv/{one.record.key}"], one.conv[layer])
    with pytest.raises(PlanError, match="twice"):
        save_states([found[0], found[0]], tmp_path / "again.safetensors")


def test_bytes_are_counted_exactly_and_refused_above_the_limit(any_scan: HybridModel):
    one = next(iter(states(any_scan, SAMPLES[:1], at="all", max_new_tokens=3)))
    held = sum(tensor.nbytes for tensor in (*one.recurrent.values(), *one.conv.values()))
    assert held == state_bytes(any_scan, any_scan.recurrent_layers, len(one.positions))
    assert len(list(states(any_scan, SAMPLES[:1], at="all", max_new_tokens=3, max_bytes=held))) == 1
    with pytest.raises(ModelError, match=rf"of 1 rows held together would take {held:,} bytes"):
        states(any_scan, SAMPLES[:1], at="all", max_new_tokens=3, max_bytes=held - 1)


def test_what_cannot_be_read_is_refused(any_scan: HybridModel, tokenizer):
    with pytest.raises(SampleError, match=r"'short' has a prompt of 7 tokens.*0\.\.6"):
        states(any_scan, SAMPLES, at=(9,))
    with pytest.raises(PlanError, match="at is positions"):
        states(any_scan, SAMPLES, at=())
    with pytest.raises(ModelError, match="recurrent layers"):
        states(any_scan, SAMPLES, layers=any_scan.attention_layers)
    attention = HybridModel(random_module("recurrentgemma", block_types=["attention"]), tokenizer)
    with pytest.raises(ModelError, match="no recurrent"):
        states(attention, SAMPLES)
