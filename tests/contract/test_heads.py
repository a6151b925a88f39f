"""Contract: every rule about heads and attention mixers, in every phase, is what plain PyTorch hooks do."""

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

import segregation as sg
from segregation.errors import PlanError
from segregation.interventions.apply import enter
from segregation.interventions.phase import Phase
from tests.contract.subjects import NEW, PHASES, SAMPLE, Subject, generated

CLOSE = 5e-5
"""Between attention computed by sdpa and by hand: float noise at logits of standard deviation 1."""


def refused_without_attention(subject: Subject, rules: Sequence[object], note: Callable[[str, object], None]) -> bool:
    """Whether the model has no attention, in which case every one of these rules is refused."""
    if subject.model.attention_layers:
        return False
    for rule in rules:
        with pytest.raises(PlanError, match=r"acts on layers that .* does not have: all of its layers are recurrent"):
            subject.model.intervene(sg.Plan(rule))
    note("refused", "it has no attention layers")
    return True


def heads_of(subject: Subject) -> tuple[tuple[int, int], ...]:
    """Some heads, of one layer or of two."""
    first, last = subject.model.attention_layers[0], subject.model.attention_layers[-1]
    return ((first, 0), (first, 3), (last, 2))


def test_ablating_and_keeping_heads_equals_hooks(subject: Subject, record_property):
    """Exactly, in the logits of every new token; the runners write the same tokens."""
    if refused_without_attention(subject, [sg.AblateHeads(), sg.KeepHeads(()), sg.AblateMixer()], record_property):
        return
    model, plain = subject.model, subject.plain
    some, layers, n = heads_of(subject), model.attention_layers, subject.ids.shape[1]
    every = {(layer, head) for layer in layers for head in range(model.n_heads)}
    kinds: list[tuple[Callable[[Phase], object], set, tuple[int, ...]]] = [
        (lambda during: sg.AblateHeads(some, during=during), set(some), ()),
        (lambda during: sg.AblateHeads(during=during), every, ()),
        (lambda during: sg.KeepHeads(some, during=during), every - set(some), ()),
        (lambda during: sg.AblateMixer(layers=layers[:1], during=during), set(), layers[:1]),
    ]
    rows = [(make(during), gone, mixers, during) for (make, gone, mixers), during in product(kinds, PHASES)]

    def edit_z(layer: int, z: Tensor, positions: Tensor) -> Tensor:
        zero = torch.zeros(*z.shape[:3], dtype=torch.bool)
        for row, (_, gone, _, during) in enumerate(rows):
            heads = [head for at, head in gone if at == layer]
            zero[row, :, heads] = subject.inside(during, positions)[:, None]
        return z.masked_fill(zero[..., None], 0)

    def edit_output(layer: int, output: Tensor, positions: Tensor) -> Tensor:
        zero = [subject.inside(during, positions) & (layer in mixers) for _, _, mixers, during in rows]
        return output.masked_fill(torch.stack(zero)[..., None], 0)

    plans = [sg.Plan(rule) for rule, *_ in rows]
    sequences, logits = generated(subject, plans)
    with plain.heads(edit_z), plain.outputs(plain.attention, edit_output):
        assert torch.equal(logits, plain.decode(sequences[:, :-1], n))
        stepped = plain.decode(sequences[:, :-1], n - 1)[:, 1:]
    base = plain.decode(sequences[:1, :n], n)[:, 0]
    for (rule, *_, during), first in zip(rows, logits[:, 0], strict=True):
        assert torch.allclose(first, base, atol=CLOSE) == (during == Phase.DECODE), rule
    assert_runner_writes(subject, plans, sequences, stepped)


def assert_runner_writes(subject: Subject, plans: Sequence[sg.Plan], sequences: Tensor, stepped: Tensor) -> None:
    """All plans at once through the runner: the same tokens, wherever the step after the prefill chooses the same."""
    records = list(sg.generate(subject.model, [SAMPLE], plans, max_new_tokens=NEW))
    n = subject.ids.shape[1]
    for record, own, logits in zip(records, sequences, stepped, strict=True):
        if own[n:].tolist() == logits.argmax(-1).tolist():
            assert list(record.tokens) == own[n:].tolist(), record.plan
    agreeing = (sequences[:, n:] == stepped.argmax(-1)).all(-1).sum()
    assert agreeing >= 0.9 * len(plans)


def test_top_heads_are_those_of_a_pattern_computed_by_hand(subject: Subject, record_property):
    """Scored and dropped inside plain attention, layer after layer, so that a layer sees what the ones below left."""
    if refused_without_attention(subject, [sg.KeepTopHeads(k=0)], record_property):
        return
    plain, n = subject.plain, subject.ids.shape[1]
    rows = [(k, score, during) for k, score, during in product((0, 1, 2), ("entropy", "l2"), PHASES)]

    def drop(_layer: int, pattern: Tensor, dest: Tensor, _src: Tensor) -> Tensor:
        worst = {"entropy": torch.special.entr(pattern).sum(-1), "l2": -pattern.norm(dim=-1)}
        stays = torch.ones(pattern.shape[:3], dtype=torch.bool)
        for row, (k, score, during) in enumerate(rows):
            order = worst[score][row].sort(dim=0, stable=True).indices  # head dest
            kept = torch.zeros_like(stays[row]).scatter_(0, order[:k], True)
            stays[row] = kept | ~subject.inside(during, dest)
        return pattern * stays[..., None]

    plans = [sg.Plan(sg.KeepTopHeads(k, score, during=during)) for k, score, during in rows]
    sequences, logits = generated(subject, plans)
    with plain.patterns(drop):
        expected = plain.decode(sequences[:, :-1], n)
        stepped = plain.decode(sequences[:, :-1], n - 1)[:, 1:]
    assert (logits - expected).abs().max() < CLOSE
    assert_runner_writes(subject, plans, sequences, stepped)
    nothing_left = enter(subject.model, *[sg.Plan(sg.AblateHeads(during=during)) for _, _, during in rows])
    with torch.no_grad():
        ablated = nothing_left.trace(sequences, prompt_lengths=[n] * len(rows), trace=False).logits
        top = enter(subject.model, *plans).trace(sequences, prompt_lengths=[n] * len(rows), trace=False).logits
    none = [row for row, (k, _, _) in enumerate(rows) if k == 0]
    assert torch.equal(ablated[none], top[none])
    assert not torch.equal(ablated, top)
