"""Contract: what a model remembers can be read, exchanged and forked, and nothing of it is left for the next run."""

import dataclasses
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import nnsight
import pytest
import torch
from torch import Tensor

import segregation as sg
from segregation.errors import ModelError, PlanError
from segregation.interventions.rules import Plan
from segregation.models.family import Ability
from tests.contract import subjects
from tests.contract.plain import CHANNELS
from tests.contract.subjects import NEW, SAMPLE, Subject, generated, unclamped
from tests.contract.test_heads import CLOSE
from tests.contract.test_recurrent import refused

OTHER = dataclasses.replace(SAMPLE, prompt="hi LETTER fe dcba ge")
"""Another prompt of the same length, under the same id."""


def test_states_are_those_that_a_plain_model_holds(subject: Subject, record_property):
    """After the prompt and every new token, and copies: a step later they are what they were."""
    model, plain, n = subject.model, subject.plain, subject.ids.shape[1]
    if not model.recurrent_layers:
        with pytest.raises(ModelError, match="no recurrent layers"):
            sg.states(model, [SAMPLE])
        record_property("refused", "it has no recurrent layers")
        return
    sequences, _ = generated(subject, [Plan()])
    for layer in model.recurrent_layers:
        with torch.no_grad(), model.generate(SAMPLE, max_new_tokens=NEW, do_sample=False) as tracer:
            states = nnsight.save([])
            for _ in tracer.iter[:NEW]:
                states.append(model.state(layer))
        plain.start()
        plain.read(subject.ids)
        for step, state in enumerate(states):
            for channel, found in (("recurrent", state.recurrent), ("conv", state.conv)):
                expected = plain.remembered(layer, channel)
                if found is None or expected is None:
                    assert found is expected
                else:
                    assert torch.equal(found, expected)
            assert (state.recurrent is None) == ("state" in subject.family.cannot)
            if step < NEW - 1:
                plain.read(sequences[:, n + step, None])
    if "state" in subject.family.cannot:
        record_property("refused", subject.family.cannot["state"])


def test_states_along_a_prompt_are_those_of_reading_it_token_by_token(family: str, record_property):
    """``sg.states``: walked again from what the scan was given, from which contributions of tokens come, too."""
    subject = unclamped(family)
    model, plain = subject.model, subject.plain
    if not model.recurrent_layers:
        with pytest.raises(ModelError, match="no recurrent layers"):
            sg.states(model, [SAMPLE], at="all")
        record_property("refused", "it has no recurrent layers")
        return
    if reason := subject.family.cannot.get("recurrence"):
        with pytest.raises(ModelError) as error:
            list(sg.states(model, [SAMPLE], at="all"))
        assert reason in str(error.value)
        record_property("refused", reason)
        (last,) = sg.states(model, [SAMPLE], at="last")
        assert last.positions == (subject.ids.shape[1] - 1,)
        return
    (found,) = sg.states(model, [SAMPLE], at="all")
    plain.start()
    for position, token in enumerate(subject.ids.split(1, dim=1)):
        plain.read(token)
        for layer, (channel, by_layer) in product(plain.mixer, (("recurrent", found.recurrent), ("conv", found.conv))):
            expected = plain.remembered(layer, channel)
            if expected is not None:
                assert torch.allclose(by_layer[layer][position], expected[0], atol=CLOSE)


def exchanged(subject: Subject, channels: Sequence[str], layers: tuple[int, ...], tokens: Tensor) -> Tensor:
    """Logits of the last prompt token and these, with channels of the memory before them from the other prompt."""
    plain = subject.plain
    plain.start()
    plain.read(torch.tensor([subject.model.encode(OTHER)])[:, :-1])
    other = plain.memory()
    plain.start()
    plain.read(subject.ids[:, :-1])
    for layer, channel in product(layers, channels):
        if (layer, channel) in other:
            plain.remember(layer, channel, other[layer, channel].clone())
    return torch.cat([plain.read(token) for token in tokens.split(1, dim=1)], dim=1)


@pytest.fixture(scope="session")
def other_memory(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the family's model remembers of the other prompt."""
    path = tmp_path_factory.mktemp(family) / "other.safetensors"
    sg.prompt_memories(subjects.subject(family).model, [OTHER], path)
    return path


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_patch_equals_a_cache_edited_by_hand(subject: Subject, channel: str, record_property, other_memory: Path):
    """Of all layers and of one, for scores and for generation."""
    model, n, path = subject.model, subject.ids.shape[1], other_memory
    there = model.attention_layers if channel in ("keys", "values") else model.recurrent_layers
    if not there:
        with pytest.raises(PlanError, match=r"acts on layers that .* does not have"):
            model.intervene(Plan(sg.PatchState(str(path), channel)))
        record_property("refused", f"it has no {'attention' if channel in ('keys', 'values') else 'recurrent'} layers")
        return
    ability: dict[str, Ability] = {"recurrent": "state", "conv": "conv", "keys": "keys", "values": "keys"}
    if refused(subject, ability[channel], [sg.PatchState(str(path), channel)], record_property):
        return
    for layers in (there, there[:1]):
        plan = Plan(sg.PatchState(str(path), channel, layers=layers))
        (record,) = sg.generate(model, [SAMPLE], plan, max_new_tokens=NEW)
        tokens = torch.tensor([[int(subject.ids[0, -1]), *record.tokens[:-1]]])
        logits = exchanged(subject, [channel], layers, tokens)
        assert logits.argmax(-1)[0].tolist() == list(record.tokens)
        (score,) = sg.loglikelihood(model, [SAMPLE], plan)
        single = model.encode_continuation(SAMPLE.choices[1])
        assert abs(score.loglikelihoods[1] - float(logits[0, 0].log_softmax(-1)[single[0]])) < CLOSE
        assert not torch.equal(logits[:, 0], subject.plain.decode(subject.ids, n - 1)[:, 1])


def test_a_fork_goes_on_as_one_forward_would(subject: Subject):
    """Twice from the same prefix, in three rows that go on differently, and once more from where one of them ended."""
    model, plain, n = subject.model, subject.plain, 12
    rest = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [5, 6, 7, 13]])
    expected = plain.decode(torch.cat([subject.ids[:, :n].expand(3, -1), rest], dim=1), n)[:, 1:]
    one = sg.fork(model, SAMPLE, n)
    first, second = (one.expand([0, 0, 0]).logits(rest) for _ in range(2))
    assert torch.equal(first, second)
    assert (first - expected).abs().max() < CLOSE
    further = one.read_on(rest[:1, :2]).logits(rest[:1, 2:])
    assert (further - expected[:1, 2:]).abs().max() < CLOSE
    ragged = sg.fork(model, [SAMPLE, SAMPLE], [n, 4]).logits(rest[:2])
    assert (ragged[:1] - expected[:1]).abs().max() < CLOSE
    short = plain.decode(torch.cat([subject.ids[:, :4], rest[1:2]], dim=1), 4)[:, 1:]
    assert (ragged[1:] - short).abs().max() < CLOSE


def test_channels_of_two_runs_are_put_together(subject: Subject):
    """By hand: every channel of the second run in turn from the first, and that each layer reads it."""
    model, n = subject.model, subject.ids.shape[1]
    runs = sg.fork(model, [SAMPLE, OTHER], n - 1)
    last = subject.ids[:, -1:]
    reason = subject.family.cannot.get("keys")
    for channels in (["recurrent"], ["conv"], *([["keys", "values"]] if reason else [["keys"], ["values"]])):
        mixed = runs.mixed({own: [1 if own in channels else 0] for own in CHANNELS}).logits(last)
        expected = exchanged(subject, channels, tuple(range(model.n_layers)), last)
        assert (mixed - expected).abs().max() < CLOSE
    if reason:
        with pytest.raises(ModelError) as error:
            runs.mixed({own: [int(own == "keys")] for own in CHANNELS})
        assert reason in str(error.value)


def test_nothing_of_a_run_is_left_for_the_next(subject: Subject):
    """A, B, A: also of prompts of one token, after an aborted trace and an aborted generation, bit for bit."""
    model, plain = subject.model, subject.plain
    word = torch.tensor([[7]])

    def run(prompt: Tensor) -> Tensor:
        with torch.no_grad():
            out = model.generate(
                prompt, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return torch.stack(out.logits, 1)

    for prompt, other in ((word, subject.ids), (subject.ids, word)):
        first = run(prompt)
        run(other)
        assert torch.equal(run(prompt), first)
        with pytest.raises(ZeroDivisionError), torch.no_grad(), model.trace(other):
            _ = model.output.logits[0] * (1 / 0)
        assert torch.equal(run(prompt), first)
        with pytest.raises(ZeroDivisionError), torch.no_grad(), model.generate(other, max_new_tokens=3):
            _ = model.output.logits[0] * (1 / 0)
        assert torch.equal(run(prompt), first)
        tokens = first.argmax(-1)[:, :-1]
        assert torch.equal(first, plain.decode(torch.cat([prompt, tokens], dim=1), prompt.shape[1]))
