"""The pure functions, against hand-made rows."""

import math

import pytest
import torch
from torch import Tensor

from segregation.interventions.tokens import Step, edit_rows, mask_rows, span_mass

ROW = [0.5, 0.25, 0.125, 0.125]


def edit(step: Step, rows: list[list[float]], member: list[int], *, prefill: bool = False, totals=None, visible=None):
    pattern = torch.tensor(rows)[None, None]  # one batch row, one head
    seen = pattern > 0 if visible is None else torch.tensor(visible, dtype=torch.bool)[None, None]
    named = torch.zeros(1, pattern.shape[-1], dtype=torch.bool)
    named[0, member] = True
    acts = torch.ones(pattern.shape[:3], dtype=torch.bool)
    inside = torch.full((1, pattern.shape[2]), prefill)
    ahead = torch.ones_like(named)[:, None]
    logs, changed = edit_rows(step, pattern.log(), seen, named, acts, inside, ahead, totals)
    return logs.exp()[0, 0], changed[0, 0].tolist()


def close(got: Tensor, expected) -> bool:
    return torch.allclose(got, torch.tensor(expected, dtype=torch.float32), atol=1e-7)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Step("hide"), [0, 0, 0.5, 0.5]),
        (Step("hide", renormalize=False), [0, 0, 0.125, 0.125]),
        (Step("only"), [2 / 3, 1 / 3, 0, 0]),
        (Step("only", renormalize=False), [0.5, 0.25, 0, 0]),
        (Step("balance"), [0.5, 0.5, 0, 0]),
        (Step("balance", renormalize=False), [0.375, 0.375, 0, 0]),
        (Step("nothing"), [0, 0, 0, 0]),
    ],
)
def test_one_row_by_hand(step: Step, expected: list[float]):
    got, changed = edit(step, [ROW], [0, 1])
    assert close(got, [expected])
    assert changed == [True]


@pytest.mark.parametrize("kind", ["hide", "only", "balance"])
def test_a_row_without_a_kept_key_is_untouched_unless_causal_is_off(kind):
    rows, member = ([[0.5, 0.5, 0, 0]], [0, 1]) if kind == "hide" else ([[0.5, 0.5, 0, 0]], [2, 3])
    got, changed = edit(Step(kind), rows, member, prefill=True)
    assert got.tolist() == rows
    assert changed == [False]
    got, changed = edit(Step(kind, renormalize=False, causal=False), rows, member, prefill=True)
    assert got.eq(0).all()
    assert changed == [True]
    got, changed = edit(Step(kind, renormalize=False, causal=False), rows, member, prefill=False)
    assert got.tolist() == rows  # outside the prefill a span that cannot be seen is left alone, also by the preset
    assert changed == [False]


def test_a_row_that_sees_none_of_what_is_hidden_is_untouched():
    got, changed = edit(Step("hide"), [[0.5, 0.5, 0, 0]], [2])
    assert got.tolist() == [[0.5, 0.5, 0, 0]]
    assert changed == [False]


def test_balance_without_causal_gives_weight_to_tokens_still_to_come():
    step = Step("balance", causal=False)
    got, _ = edit(step, [[0.5, 0.5, 0, 0]], [1, 2, 3], prefill=True)
    assert close(got, [[0, 1 / 3, 1 / 3, 1 / 3]])
    got, _ = edit(Step("balance"), [[0.5, 0.5, 0, 0]], [1, 2, 3], prefill=True)
    assert close(got, [[0, 1, 0, 0]])


def test_the_sum_over_a_phase_is_shared_out_in_every_row():
    step = Step("balance", renormalize=False, causal=False, summed_over="prefill")
    totals = torch.tensor([[[3.0, 3.0]]]).log()
    got, _ = edit(step, [[1.0, 0, 0], [0.5, 0.25, 0.25]], [0, 2], prefill=True, totals=totals)
    assert close(got, [[1.5, 0, 1.5], [1.5, 0, 1.5]])


def test_a_row_is_renormalised_exactly_when_nearly_all_of_it_is_hidden():
    logs = torch.tensor([[[[0.0, -200.0, -200.0 + math.log(3)]]]])  # exp of the last two is 0 in fp32
    everywhere = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    member = torch.tensor([[True, False, False]])
    acts = everywhere[..., 0]
    got, _ = edit_rows(Step("hide"), logs, everywhere, member, acts, torch.zeros(1, 1, dtype=torch.bool), member[None])
    assert close(got.exp()[0, 0, 0], [0, 0.25, 0.75])


def test_rows_that_do_not_act_are_untouched_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(2, 3, 5, 7, generator=generator).log_softmax(-1)
    visible = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    acts = torch.rand(2, 3, 5, generator=generator) < 0.5
    member = torch.rand(2, 7, generator=generator) < 0.5
    for kind in ("hide", "only", "balance", "nothing"):
        inside = torch.ones(2, 5, dtype=torch.bool)
        got, changed = edit_rows(Step(kind), logs, visible, member, acts, inside, member[:, None])
        assert torch.equal(changed, acts)
        assert torch.equal(got[~acts], logs[~acts])
        sums = got[acts].exp().sum(-1)
        assert torch.allclose(sums, torch.zeros_like(sums) if kind == "nothing" else torch.ones_like(sums), atol=1e-6)


def test_span_mass_is_the_weight_of_the_visible_tokens():
    logs = torch.tensor([[[ROW]]]).log()
    member = torch.tensor([[True, False, True, False]])
    assert span_mass(logs, torch.ones(1, 1, 1, 4, dtype=torch.bool), member).item() == pytest.approx(0.625)
    assert span_mass(logs, torch.tensor([[[[True, True, False, True]]]]), member).item() == 0.5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kinds", [("hide",), ("only",), ("nothing",), ("hide", "only"), ("only", "hide", "nothing")])
def test_a_mask_leaves_the_pattern_that_the_edits_leave(kinds: tuple[str, ...], seed: int) -> None:
    """Steps that mask, one after the other, on random rows: the same pattern, and the same rows changed."""
    torch.manual_seed(seed)
    batch, heads, queries, keys = 2, 3, 6, 8
    scores, visible = torch.randn(batch, heads, queries, keys), torch.rand(batch, 1, queries, keys) < 0.6
    logs = scores.masked_fill(~visible, -torch.inf).log_softmax(-1)
    logs = logs.masked_fill(~visible, -torch.inf)  # a row that sees nothing
    left = visible.expand(scores.shape)
    inside, ahead = torch.zeros(batch, queries, dtype=torch.bool), torch.zeros(batch, 1, keys, dtype=torch.bool)
    for kind in kinds:
        step, member, acts = Step(kind), torch.rand(batch, keys) < 0.4, torch.rand(batch, heads, queries) < 0.7
        logs, edited = edit_rows(step, logs, visible, member, acts, inside, ahead)
        left, masked = mask_rows(step, left, member, acts)
        some = left.any(-1, keepdim=True)
        assert step.masks and torch.equal(edited & visible.any(-1), masked & visible.any(-1))
        pattern = scores.masked_fill(some & ~left, -torch.inf).softmax(-1).masked_fill(~some, 0)
        torch.testing.assert_close(pattern, logs.exp(), atol=1e-6, rtol=0)
