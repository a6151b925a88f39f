"""One run's memory in another's place: against plain transformers with a hand-edited cache and module attributes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segregation.errors import ModelError, PlanError, SampleError
from segregation.interventions.head_rules import AblateHeads
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import PatchState, ResetState
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.models.states import RecurrentState, check_taken, state_change
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans
from segregation.runs.generate import generate
from segregation.runs.launch import prefill
from segregation.runs.loglikelihood import loglikelihood
from segregation.runs.references import prompt_memories

CHANNELS = ("recurrent", "conv", "keys", "values")
CLEAN = (
    Sample("a", "abc defgh ij kl", "xyz", choices=("xyz", "y")),
    Sample("b", "hgf edc ba", "z", choices=("z", "q")),
)
CORRUPT = (Sample("a", "lk jih gfed cba", "xyz"), Sample("b", "kkk jjj ii", "z"))
"""Of the same lengths."""


def stored(model: HybridModel, samples, path: Path) -> str:
    prompt_memories(model, samples, path)
    return str(path)


def by_hand(model: HybridModel, clean: Sample | list, corrupt: Sample, channels, layers=None, steps: int = 4):
    """Greedy tokens and the logits that chose them, with the channels of two plain prefills exchanged by hand."""
    module = model.hf_model

    def read(given: Sample | list):
        model.reset()
        ids = torch.tensor([model.encode(given) if isinstance(given, Sample) else given])
        cache = model.new_cache()
        module(ids[:, :-1], past_key_values=cache, use_cache=True)
        held = []
        if model.family.name == "recurrentgemma":
            blocks = [model.mixer(layer)._module for layer in model.recurrent_layers]
            held = [(block.conv1d_state.clone(), block.rg_lru.recurrent_states.clone()) for block in blocks]
        return ids, cache, held

    with torch.no_grad():
        _, other, other_held = read(corrupt)
        ids, cache, held = read(clean)
        for layer in range(model.n_layers) if layers is None else layers:
            mine, theirs = cache.layers[layer], other.layers[layer]
            for channel in channels:
                if model.layer_types[layer] == "attention" and channel in ("keys", "values"):
                    setattr(mine, channel, getattr(theirs, channel))
                elif model.layer_types[layer] == "recurrent" and channel in ("recurrent", "conv"):
                    if held:
                        block, number = model.mixer(layer)._module, model.recurrent_layers.index(layer)
                        if channel == "conv":
                            block.conv1d_state = other_held[number][0]
                        else:
                            block.rg_lru.recurrent_states = other_held[number][1]
                    else:
                        name = f"{channel}_states"
                        getattr(mine, name)[0] = getattr(theirs, name)[0]
        token, tokens, logits = ids[:, -1:], [], []
        for step in range(steps):
            position = torch.tensor([[ids.shape[1] - 1 + step]])
            out = module(token, past_key_values=cache, position_ids=position, use_cache=True).logits[:, -1]
            token = out.argmax(-1, keepdim=True)
            tokens.append(int(token))
            logits.append(out)
    model.reset()
    return tuple(tokens), torch.cat(logits)


def first_logits(model: HybridModel, sample: Sample, plan: Plan) -> Tensor:
    """The logits of the last prompt token, fed alone after a prefill."""
    prompt = tuple(model.encode(sample))
    with torch.no_grad():
        memory = prefill(model, [prompt])
        return (
            model.intervene(plan)
            .trace(
                torch.tensor([prompt[-1:]]),
                past_key_values=model.recall(memory),
                position_ids=torch.tensor([[len(prompt) - 1]]),
                prompt_lengths=[len(prompt)],
                spans=[TokenSpans(sample.id, ())],
                trace=False,
            )
            .logits[:, -1]
        )


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_patch_equals_a_cache_edited_by_hand(any_scan: HybridModel, channel, tmp_path: Path):
    path = stored(any_scan, CORRUPT, tmp_path / "corrupt.safetensors")
    plan = Plan(PatchState(path, channel))
    for clean, corrupt in zip(CLEAN, CORRUPT, strict=True):
        _, expected = by_hand(any_scan, clean, corrupt, [channel])
        got = first_logits(any_scan, clean, plan)
        torch.testing.assert_close(got, expected[:1], atol=1e-5, rtol=1e-5)
        assert not torch.equal(got, first_logits(any_scan, clean, Plan()))


def test_generation_goes_on_from_the_patch(any_scan: HybridModel, tmp_path: Path):
    """A padded batch of two samples under two plans: each row as by hand; plans that patch share the prefill."""
    path = stored(any_scan, CORRUPT, tmp_path / "corrupt.safetensors")
    layer = any_scan.recurrent_layers[1]
    plans = [
        Plan(PatchState(path, "recurrent", layers=(layer,))),
        Plan(*(PatchState(path, channel) for channel in CHANNELS)),
        Plan(),
    ]
    records = list(generate(any_scan, CLEAN, plans, max_new_tokens=4))
    hand = [(["recurrent"], [layer]), (CHANNELS, None), ([], None)]
    for number, (clean, corrupt) in enumerate(zip(CLEAN, CORRUPT, strict=True)):
        for record, (channels, layers) in zip(records[3 * number : 3 * number + 3], hand, strict=True):
            assert record.tokens == by_hand(any_scan, clean, corrupt, channels, layers)[0]


def test_own_memory_is_the_identity(any_scan: HybridModel, tmp_path: Path):
    path = stored(any_scan, CLEAN, tmp_path / "clean.safetensors")
    own = Plan(*(PatchState(path, channel) for channel in CHANNELS))
    for sample in CLEAN:
        assert torch.equal(first_logits(any_scan, sample, own), first_logits(any_scan, sample, Plan()))


def test_likelihoods_are_scored_after_the_patch(any_scan: HybridModel, tmp_path: Path):
    path = stored(any_scan, CORRUPT, tmp_path / "corrupt.safetensors")
    plan = Plan(PatchState(path, "recurrent"))
    for model, plans in ((any_scan, plan), (any_scan.intervene(plan), Plan())):
        for sample, corrupt, record in zip(CLEAN, CORRUPT, loglikelihood(model, CLEAN, plans), strict=True):
            _, logits = by_hand(any_scan, sample, corrupt, ["recurrent"], steps=1)
            single = any_scan.encode_continuation(sample.choices[-1])
            expected = float(logits[0].log_softmax(-1)[single[0]])
            assert record.loglikelihoods[-1] == pytest.approx(expected, abs=1e-5)


def test_decode_patches_before_the_first_new_token(any_scan: HybridModel, tmp_path: Path):
    """By hand: the new token is read after a prefill of the whole prompt, so its memory is one of the whole prompt."""
    whole = [dataclasses.replace(corrupt, prompt=corrupt.prompt + "!") for corrupt in CORRUPT]
    path = stored(any_scan, whole, tmp_path / "whole.safetensors")
    base = list(generate(any_scan, CLEAN, Plan(), max_new_tokens=3))
    plan = Plan(PatchState(path, "recurrent", during=Phase.DECODE))
    for clean, corrupt, plain, record in zip(
        CLEAN, whole, base, generate(any_scan, CLEAN, plan, max_new_tokens=3), strict=True
    ):
        assert record.tokens[0] == plain.tokens[0]
        longer = [*any_scan.encode(clean), record.tokens[0]]
        assert record.tokens[1:] == by_hand(any_scan, longer, corrupt, ["recurrent"], steps=2)[0]


def test_patches_stack_with_rules_about_heads_and_leave_nothing(any_scan: HybridModel, tmp_path: Path):
    path = stored(any_scan, CORRUPT, tmp_path / "corrupt.safetensors")
    patch, heads = PatchState(path, "recurrent"), AblateHeads(during=Phase.GENERATION)
    base = first_logits(any_scan, CLEAN[0], Plan())
    both = first_logits(any_scan, CLEAN[0], Plan(patch, heads))
    assert torch.equal(both, first_logits(any_scan.intervene(Plan(heads)), CLEAN[0], Plan(patch)))
    assert not torch.equal(both, first_logits(any_scan, CLEAN[0], Plan(heads)))
    assert torch.equal(first_logits(any_scan, CLEAN[0], Plan()), base)


def test_a_patch_that_is_forgotten_at_once(any_scan: HybridModel, tmp_path: Path):
    """A state that is patched before a position and reset there is zero there, whichever plan comes first."""
    path = stored(any_scan, CORRUPT, tmp_path / "corrupt.safetensors")
    patch, reset = Plan(PatchState(path)), Plan(ResetState(every=5, during=Phase.LAST))
    assert (len(any_scan.encode(CLEAN[0])) - 1) % 5 == 0
    alone = first_logits(any_scan, CLEAN[0], reset)
    assert torch.equal(first_logits(any_scan.intervene(patch), CLEAN[0], reset), alone)
    assert torch.equal(first_logits(any_scan.intervene(reset), CLEAN[0], patch), alone)
    assert not torch.equal(first_logits(any_scan, CLEAN[0], patch), alone)


def test_a_patch_that_did_not_happen_is_refused(any_scan: HybridModel, tmp_path: Path, monkeypatch):
    """The state that was written is taken away again before the layer reads it, as an alias or a second run would."""
    path = stored(any_scan, CORRUPT, tmp_path / "corrupt.safetensors")
    for channel in CHANNELS:
        with monkeypatch.context() as patching:
            patching.setattr("segregation.interventions.patching.write_channel", lambda *_: None)
            with pytest.raises(ModelError, match="the patch did not happen"):
                first_logits(any_scan, CLEAN[0], Plan(PatchState(path, channel)))
        any_scan.reset()


def test_patches_that_cannot_be(any_scan: HybridModel, tmp_path: Path):
    path = stored(any_scan, CORRUPT[:1], tmp_path / "one.safetensors")
    plan = Plan(PatchState(path))
    with pytest.raises(PlanError, match="goes over it"), torch.no_grad():
        any_scan.intervene(plan).trace(CLEAN[0], trace=False)
    first = torch.tensor([any_scan.encode(CLEAN[0])])
    with pytest.raises(SampleError, match="not a Sample"), torch.no_grad():
        any_scan.intervene(Plan(PatchState(path, during=Phase.DECODE))).generate(first, max_new_tokens=2)
    with pytest.raises(SampleError, match="no memory of the sample 'b'"):
        generate(any_scan, CLEAN, plan, max_new_tokens=2)
    other = dataclasses.replace(CLEAN[1], id="a")
    with pytest.raises(PlanError, match=r"has read 10 tokens .* is of 15"):
        generate(any_scan, [other], Plan(PatchState(path, "keys")), max_new_tokens=2)
    list(generate(any_scan, [other], plan, max_new_tokens=2))  # states have no length
    with pytest.raises(PlanError, match="must be one of"):
        any_scan.intervene(Plan(PatchState(path, layers=any_scan.attention_layers)))
    with pytest.raises(PlanError, match="must be one of"):
        any_scan.intervene(Plan(PatchState(path, "keys", layers=any_scan.recurrent_layers)))
    prompt_memories(any_scan, CORRUPT, path)
    with pytest.raises(PlanError, match="bring that file back"):
        any_scan.intervene(plan)


def test_state_change_and_what_was_taken():
    one = RecurrentState(torch.zeros(1, 2), torch.zeros(1, 2, 3))
    other = RecurrentState(torch.tensor([[0.0, 0.5]]), torch.full((1, 2, 3), -2.0))
    assert (state_change(one, one), state_change(one, other)) == (0.0, 2.0)
    check_taken("a", one.recurrent, one.recurrent.clone())
    with pytest.raises(ModelError, match="a: what was written"):
        check_taken("a", one.recurrent, other.recurrent)
