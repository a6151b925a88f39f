"""Contract: every rule about tokens, in every phase, is what an edit of plain attention's probabilities does."""

from collections.abc import Sequence
from itertools import product

import nnsight
import torch
from torch import Tensor

import segregation as sg
from segregation.interventions.apply import enter
from segregation.interventions.phase import Phase
from tests.contract.subjects import PHASES, SAMPLE, Subject, attending, generated
from tests.contract.test_heads import CLOSE, assert_runner_writes, refused_without_attention

KINDS = {
    "hide": lambda during: sg.HideTokens("needle", during=during),
    "hide but": lambda during: sg.HideTokens("context", but="needle", during=during),
    "only": lambda during: sg.OnlyTokens("needle", during=during),
    "balance": lambda during: sg.BalanceTokens("end", during=during),
    "hide all": lambda during: sg.HideAll(during=during),
    "only new": lambda during: sg.OnlyTokens("end+new", during=during),
}


def kept(kind: str, src: Tensor, prompt: int) -> Tensor:
    """Which keys a rule keeps, by position; character c of the sample is token c + 1."""
    needle, context, end = ((src >= start + 1) & (src < stop + 1) for ((start, stop),) in SAMPLE.spans.values())
    return {
        "hide": ~needle,
        "hide but": ~context | needle,
        "only": needle,
        "balance": end,
        "hide all": src < 0,
        "only new": end | (src >= prompt),
    }[kind]


def edit(subject: Subject, rows: Sequence[tuple[str, Phase]]):
    """The rows' rules by definition: what is kept, renormalised or shared out; a row without any is left alone."""
    window, prompt = subject.model.window, subject.ids.shape[1]

    def change(_layer: int, pattern: Tensor, dest: Tensor, src: Tensor) -> Tensor:
        visible = src <= dest[:, None]
        if window is not None:
            visible = visible & (src > dest[:, None] - window)
        changed = pattern.clone()
        for row, (kind, during) in enumerate(rows):
            there = visible & kept(kind, src, prompt)
            made = there.to(pattern) if kind == "balance" else pattern[row] * there
            made = made / made.sum(-1, keepdim=True).clamp_min(torch.finfo(pattern.dtype).tiny)
            acts = subject.inside(during, dest) & (there.any(-1) | (kind == "hide all"))
            changed[row] = torch.where(acts[:, None], made, pattern[row])
        return changed

    return change


def test_token_rules_equal_plain_attention_with_its_probabilities_edited(subject: Subject, record_property):
    plain, n = subject.plain, subject.ids.shape[1]
    rows = list(product(KINDS, PHASES))
    if refused_without_attention(subject, [KINDS[kind](during) for kind, during in rows], record_property):
        return
    plans = [sg.Plan(KINDS[kind](during)) for kind, during in rows]
    sequences, logits = generated(subject, plans)
    with plain.patterns(edit(subject, rows)):
        expected = plain.decode(sequences[:, :-1], n)
        stepped = plain.decode(sequences[:, :-1], n - 1)[:, 1:]
    assert (logits - expected).abs().max() < CLOSE
    base = generated(subject, [sg.Plan()] * len(rows))[1]
    for row, own, untouched in zip(rows, logits, base, strict=True):
        assert not torch.allclose(own, untouched, atol=CLOSE), row
    assert_runner_writes(subject, plans, sequences, stepped)


def test_eager_and_sdpa_are_one_function_under_plans(subject: Subject, record_property):
    """In one forward pass, of rules about heads and tokens alike."""
    model, n = subject.model, subject.ids.shape[1]
    rules = [sg.KeepTopHeads(1), sg.AblateHeads(during=Phase.LAST), *(make(Phase.ALL) for make in KINDS.values())]
    if refused_without_attention(subject, rules, record_property):
        return
    plans = [sg.Plan(), *map(sg.Plan, rules)]
    edited, found = enter(model, *plans), {}
    for implementation in ("eager", "sdpa"):
        with attending(model, implementation), torch.no_grad():
            found[implementation] = edited.trace([SAMPLE] * len(plans), prompt_lengths=[n] * len(plans), trace=False)
    gap = float((found["eager"].logits - found["sdpa"].logits).abs().max())
    record_property("gap", ("eager against sdpa", gap))
    assert 0 < gap < CLOSE


def test_pattern_times_values_is_what_attention_returns(subject: Subject, record_property):
    """Also where z is wider or narrower than keys, or multiplied by a gate afterwards."""
    if refused_without_attention(subject, [sg.KeepTopHeads(1)], record_property):
        return
    for implementation, layer in product(("sdpa", "eager"), subject.model.attention_layers):
        with attending(subject.model, implementation):
            assert_pattern_times_values(subject, layer)


def assert_pattern_times_values(subject: Subject, layer: int) -> None:
    model = subject.model
    with torch.no_grad(), model.trace(SAMPLE):
        call = model.attention_call(layer)
        pattern, mixed = nnsight.save(model.pattern(layer)), nnsight.save(call.z())
        output = nnsight.save(model.attention_output(layer)[0])
        z = nnsight.save(model.z(layer))
    assert torch.allclose(mixed, output, atol=1e-5)
    assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-6)
    assert z.shape == output.shape == (1, subject.ids.shape[1], model.n_heads, model.d_head)
    assert torch.equal(z, output) != subject.family.gated
