"""Contract: every rule about recurrence, in every phase, is what hooks on mixers and a state edited by hand do."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import nnsight
import pytest
import torch
from torch import Tensor

import segregation as sg
from segregation.errors import PlanError
from segregation.interventions.apply import enter
from segregation.models.family import Ability
from segregation.prompts.spans import sample_spans
from tests.conftest import byte_tokenizer
from tests.contract.subjects import PHASES, SAMPLE, Subject, generated, unclamped
from tests.contract.test_heads import CLOSE, assert_runner_writes


def refused_without_recurrence(subject: Subject, rules: Sequence[object], note: Callable[[str, object], None]) -> bool:
    """Whether the model has no recurrent layer, in which case every one of these rules is refused."""
    if subject.model.recurrent_layers:
        return False
    for rule in rules:
        with pytest.raises(PlanError, match=r"acts on layers that .* does not have: all of its layers are attention"):
            subject.model.intervene(sg.Plan(rule))
    note("refused", "it has no recurrent layers")
    return True


def refused(subject: Subject, ability: Ability, rules: Sequence[object], note: Callable[[str, object], None]) -> bool:
    """Whether the registry says that this cannot be, in which case every one of these rules is refused, and why."""
    if ability not in subject.family.cannot:
        return False
    reason = subject.family.cannot[ability]
    for rule in rules:
        with pytest.raises(PlanError) as error:
            subject.model.intervene(sg.Plan(rule))
        assert reason in str(error.value)
    note("refused", reason)
    return True


def test_zero_equals_hooks_on_mixers(subject: Subject, record_property):
    """Exactly, of all mixers and of one."""
    if refused_without_recurrence(subject, [sg.AblateRecurrent("zero")], record_property):
        return
    model, plain, n = subject.model, subject.plain, subject.ids.shape[1]
    rows = list(product((model.recurrent_layers, model.recurrent_layers[:1]), PHASES))
    plans = [sg.Plan(sg.AblateRecurrent("zero", layers=layers, during=during)) for layers, during in rows]

    def silence(layer: int, output: Tensor, positions: Tensor) -> Tensor:
        zero = [subject.inside(during, positions) & (layer in layers) for layers, during in rows]
        return output.masked_fill(torch.stack(zero)[..., None], 0)

    sequences, logits = generated(subject, plans)
    with plain.outputs(plain.mixer, silence):
        assert torch.equal(logits, plain.decode(sequences[:, :-1], n))
        stepped = plain.decode(sequences[:, :-1], n - 1)[:, 1:]
    base = generated(subject, [sg.Plan()] * len(rows))[1]
    for row, own, untouched in zip(rows, logits, base, strict=True):
        assert not torch.allclose(own, untouched, atol=CLOSE), row
    assert_runner_writes(subject, plans, sequences, stepped)


def test_means_and_resampled_outputs_are_those_of_hooks(subject: Subject, record_property, tmp_path: Path):
    """A pool of one output is all that can be drawn."""
    path, model, plain = tmp_path / "outputs.safetensors", subject.model, subject.plain
    if not model.recurrent_layers:
        with pytest.raises(PlanError, match="of a model with 0 such layers"):
            sg.mixer_outputs(model, [SAMPLE], path)
        record_property("refused", "it has no recurrent layers")
        return
    sg.mixer_outputs(model, [SAMPLE], path, pool=1)
    outputs: dict[int, Tensor] = {}
    with plain.outputs(plain.mixer, lambda layer, output, _: outputs.setdefault(layer, output)):
        plain.run(subject.ids)
    drawn = int(torch.randperm(subject.ids.shape[1], generator=torch.Generator().manual_seed(0))[0])
    values = {
        "mean": {layer: output[0].mean(0) for layer, output in outputs.items()},
        "resample": {layer: output[0, drawn] for layer, output in outputs.items()},
    }
    for value, by_layer in values.items():
        plan = sg.Plan(sg.AblateRecurrent(value, source=str(path), during=sg.Phase.GENERATION))
        sequences, logits = generated(subject, [plan])

        def put(layer: int, output: Tensor, positions: Tensor, by_layer=by_layer) -> Tensor:
            return torch.where(subject.inside(sg.Phase.GENERATION, positions)[:, None], by_layer[layer], output)

        with plain.outputs(plain.mixer, put):
            expected = plain.decode(sequences[:, :-1], subject.ids.shape[1])
        assert (logits - expected).abs().max() < CLOSE


def walked(subject: Subject, ids: Tensor, skips: Tensor, resets: Tensor) -> Tensor:
    """Logits token by token; ``skips`` put back what was remembered before, ``resets`` set it to zero.

    A token that is skipped shifts the convolution's buffer by a zero.
    """
    plain = subject.plain
    plain.start()
    logits = []
    for t in range(ids.shape[1]):
        before = plain.memory()
        for layer in plain.mixer if t else ():
            state = plain.remembered(layer, "recurrent")
            if state is not None:
                plain.remember(layer, "recurrent", by_row(resets[:, t], torch.zeros_like(state), state))

        def silence(_layer: int, output: Tensor, _positions: Tensor, at=skips[:, t]) -> Tensor:
            return output.masked_fill(at[:, None, None], 0)

        with plain.outputs(plain.mixer, silence):
            logits.append(plain.read(ids[:, t : t + 1]))
        for layer, channel in product(plain.mixer, ("recurrent", "conv")):
            after = plain.remembered(layer, channel)
            if after is None:
                continue
            was = before.get((layer, channel), torch.zeros_like(after))
            if channel == "conv":
                was = torch.cat([was[..., 1:], torch.zeros_like(was[..., :1])], dim=-1)
            plain.remember(layer, channel, by_row(skips[:, t], was, after).clone())
    return torch.cat(logits, dim=1)


def by_row(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new, old)


def test_skipping_puts_back_what_was_remembered(family: str, record_property):
    """Of all tokens in some phase, of a span in the prompt, and of new ones; in one forward and in generation."""
    subject = unclamped(family)
    rules = [
        *(sg.AblateRecurrent("skip", during=during) for during in PHASES),
        sg.AblateRecurrent("skip", span="context", but="needle"),
        sg.AblateRecurrent("skip", span="end+new"),
    ]
    if refused_without_recurrence(subject, rules, record_property) or refused(subject, "skip", rules, record_property):
        return
    n, plans = subject.ids.shape[1], [sg.Plan(rule) for rule in rules]
    sequences, logits = generated(subject, plans)
    ids = sequences[:, :-1]
    positions = torch.arange(ids.shape[1])
    masks = [subject.inside(during, positions) for during in PHASES]
    (needle, context, end) = (
        (positions >= start + 1) & (positions < stop + 1) for ((start, stop),) in SAMPLE.spans.values()
    )
    masks += [context & ~needle, end | (positions >= n)]
    skips = torch.stack(masks)
    assert_walked(subject, plans, sequences, logits, skips, torch.zeros_like(skips))


def assert_walked(
    subject: Subject, plans: Sequence[sg.Plan], sequences: Tensor, logits: Tensor, skips: Tensor, resets: Tensor
) -> None:
    n, ids = subject.ids.shape[1], sequences[:, :-1]
    expected = walked(subject, ids, skips, resets)
    assert (logits - expected[:, n - 1 :]).abs().max() < CLOSE
    spans = [sample_spans(byte_tokenizer(), SAMPLE)] * len(plans)
    with torch.no_grad():
        edited = enter(subject.model, *plans)
        forced = edited.trace(ids, prompt_lengths=[n] * len(plans), spans=spans, trace=False).logits
    assert (forced - expected).abs().max() < CLOSE
    base = subject.plain.run(ids)
    for row, (own, untouched) in enumerate(zip(expected, base, strict=True)):
        acts = bool(skips[row].any() or resets[row].any())
        assert torch.allclose(own, untouched, atol=CLOSE) != acts, plans[row]
    assert_runner_writes(subject, plans, sequences, expected[:, n - 1 :])


def test_what_is_skipped_is_not_written(subject: Subject, record_property):
    """Where a prefill clamps its step dt, too."""
    rule = sg.AblateRecurrent("skip")
    if refused_without_recurrence(subject, [rule], record_property) or refused(
        subject, "skip", [rule], record_property
    ):
        return
    for layer in subject.model.recurrent_layers:
        with torch.no_grad(), subject.model.intervene(sg.Plan(rule)).trace(SAMPLE):
            state = nnsight.save(subject.model.state(layer))
        kept = [one for one in (state.recurrent, state.conv) if one is not None]
        assert kept and all(one.abs().max() == 0 for one in kept)


def test_resetting_sets_the_state_to_zero(family: str, record_property):
    """Before every fourth and every token, in every phase; the convolution goes on."""
    subject = unclamped(family)
    cases = list(product((1, 4), PHASES))
    rules = [sg.ResetState(every=every, during=during) for every, during in cases]
    if refused_without_recurrence(subject, rules, record_property) or refused(subject, "reset", rules, record_property):
        return
    sequences, logits = generated(subject, plans := [sg.Plan(rule) for rule in rules])
    positions = torch.arange(sequences.shape[1] - 1)
    resets = torch.stack(
        [subject.inside(during, positions) & (positions % every == 0) & (positions > 0) for every, during in cases]
    )
    assert_walked(subject, plans, sequences, logits, torch.zeros_like(resets), resets)
