"""Contract: bfloat16, fast scans, beams, and layers that hold attention and a recurrent mixer."""

import nnsight
import pytest
import torch
from torch import Tensor

import segregation as sg
from segregation.errors import ModelError
from segregation.interventions.rules import Plan
from segregation.models.scan_choice import use_scans
from tests.contract.subjects import NEW, PHASES, SAMPLE, Subject, generated
from tests.contract.subjects import subject as subject_of
from tests.contract.test_heads import CLOSE
from tests.contract.test_scores import RAGGED


def test_bfloat16(family: str, record_property):
    """Untouched bit for bit; patterns and tokens come out; padding costs as much as rounding does."""
    subject = subject_of(family, torch.bfloat16)
    model, plain = subject.model, subject.plain
    assert model.dtype == torch.bfloat16
    plans = [Plan(), *([Plan(sg.KeepTopHeads(model.n_heads))] if model.attention_layers else [])]
    for plan in plans:
        with torch.no_grad():
            assert torch.equal(model.intervene(plan).trace(SAMPLE, trace=False).logits, plain.run(subject.ids))
    for layer in model.attention_layers:
        with torch.no_grad(), model.trace(SAMPLE):
            mixed = nnsight.save(model.attention_call(layer).z())
            output = nnsight.save(model.attention_output(layer)[0])
        assert (mixed - output).abs().max() <= 2e-2 * output.abs().max()
    rule = sg.AblateHeads() if model.attention_layers else sg.AblateRecurrent()
    base, ablated = sg.generate(model, [SAMPLE], [Plan(), Plan(rule)], max_new_tokens=NEW)
    assert len(base.tokens) == len(ablated.tokens) == NEW
    assert base.tokens[0] == int(plain.decode(subject.ids, subject.ids.shape[1] - 1)[0, -1].argmax())
    with torch.no_grad():
        assert not torch.equal(model.intervene(Plan(rule)).trace(SAMPLE, trace=False).logits, plain.run(subject.ids))
        padded = model.trace(RAGGED, trace=False).logits[2].float()
        alone = model.trace(RAGGED[2], trace=False).logits[0].float()
        exact = subject_of(family).model.trace(RAGGED[2], trace=False).logits[0]
    gap, rounding = float((padded[-len(alone) :] - alone).abs().max()), float((alone - exact).abs().max())
    record_property("gap", ("bfloat16: padded batch against its rows", gap))
    record_property("gap", ("bfloat16 against float32", rounding))
    assert gap <= max(2 * rounding, 0.05)


def test_fast_scans_are_the_audited_ones(subject: Subject, record_property):
    """To float noise, under plans that edit them, in a prefill and in generation."""
    model = subject.model
    faster = subject.family.scan in ("rg_lru", "mamba")
    rules = [sg.HideTokens("needle")] if model.attention_layers else []
    if model.recurrent_layers:
        rules += [sg.AblateRecurrent(during=sg.Phase.GENERATION)]
        rules += [] if "skip" in subject.family.cannot else [sg.AblateRecurrent("skip", span="needle")]
        rules += [] if "reset" in subject.family.cannot else [sg.ResetState(every=4)]
    plans = [Plan(), *map(Plan, rules)]
    assert model.description.get("scans") == ("audit" if faster else None)
    audited = generated(subject, plans)[1]
    use_scans(model, "fast")
    try:
        gap = float((generated(subject, plans)[1] - audited).abs().max())
    finally:
        use_scans(model, "audit")
    record_property("gap", ("fast scans against those bit for bit", gap))
    assert gap < CLOSE
    assert (gap > 0) == faster


def test_beams_move_all_that_is_remembered(subject: Subject, record_property):
    """Against beams of the plain model without a cache, which holds nothing to be moved."""
    model, arguments = subject.model, {"num_beams": 3, "max_new_tokens": NEW, "do_sample": False}
    if reason := subject.family.cannot.get("beams"):
        with pytest.raises(ModelError) as error:
            model.generate(SAMPLE, **arguments)
        assert reason in str(error.value)
        record_property("refused", reason)
        return
    arguments |= {"num_return_sequences": 3, "output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad():
        found = model.generate(SAMPLE, **arguments)
        expected = subject.plain.module.generate(subject.ids, use_cache=False, **arguments)
    assert torch.equal(found.sequences, expected.sequences)
    assert found.beam_indices.unique().numel() > 1  # rows did move


def test_both_mixers_of_a_layer_are_edited_by_one_plan(subject: Subject):
    """Whichever rule stands first, in every phase; in other models the two are of two layers."""
    model, plain, n = subject.model, subject.plain, subject.ids.shape[1]
    if not (model.attention_layers and model.recurrent_layers):
        assert set(model.layer_types) in ({"attention"}, {"recurrent"})
        return
    both = [layer for layer, kind in enumerate(model.layer_types) if kind == "hybrid"]
    attention, mixer = (both[0], both[0]) if both else (model.attention_layers[0], model.recurrent_layers[-1])
    plans = []
    for during in PHASES:
        rules = sg.AblateHeads(((attention, 1),), during=during), sg.AblateRecurrent(layers=(mixer,), during=during)
        plans += [Plan(*rules), Plan(*rules[::-1]), Plan(rules[0]), Plan(rules[1])]

    def zero(rows_per_phase: tuple[int, ...], values: Tensor, positions: Tensor) -> Tensor:
        at = torch.zeros(len(plans), len(positions), dtype=torch.bool)
        for number, during in enumerate(PHASES):
            for row in rows_per_phase:
                at[4 * number + row] = subject.inside(during, positions)
        return values.masked_fill(at.view(*at.shape, *[1] * (values.dim() - 2)), 0)

    def heads(layer: int, z: Tensor, positions: Tensor) -> Tensor:
        if layer != attention:
            return z
        return torch.cat([z[:, :, :1], zero((0, 1, 2), z[:, :, 1:2], positions), z[:, :, 2:]], dim=2)

    def outputs(layer: int, output: Tensor, positions: Tensor) -> Tensor:
        return zero((0, 1, 3), output, positions) if layer == mixer else output

    sequences, logits = generated(subject, plans)
    with plain.heads(heads), plain.outputs(plain.mixer, outputs):
        assert torch.equal(logits, plain.decode(sequences[:, :-1], n))
    one, other, *alone = logits.unflatten(0, (len(PHASES), 4)).unbind(1)
    assert torch.equal(one, other)
    assert not any(torch.equal(one, single) for single in alone)
