import math

import torch

from segregation.interventions.heads import ablate, entropy, keep_top, l2, negative_entropy, paper_entropy

ONE_HOT = [1.0, 0.0, 0.0, 0.0]
HALF = [0.5, 0.5, 0.0, 0.0]
UNIFORM = [0.25, 0.25, 0.25, 0.25]
THREE_HEADS = torch.tensor([[[UNIFORM], [ONE_HOT], [HALF]]])  # batch 1, head 3, dest 1, src 4


def test_three_hand_made_heads():
    assert torch.allclose(entropy(THREE_HEADS)[0, :, 0], torch.tensor([math.log(4), 0.0, math.log(2)]))
    assert torch.allclose(l2(THREE_HEADS)[0, :, 0], torch.tensor([0.5, 1.0, 0.5**0.5]))
    assert torch.allclose(paper_entropy(THREE_HEADS)[0, :, 0], torch.tensor([-2.0, 0.0, -1.0]), atol=1e-6)


def test_a_uniform_row_loses_to_a_one_hot_row():
    for score in (negative_entropy, l2, paper_entropy):
        assert keep_top(score(THREE_HEADS), 1)[0, :, 0].tolist() == [False, True, False]
        assert keep_top(score(THREE_HEADS), 2)[0, :, 0].tolist() == [False, True, True]


def test_every_k():
    scores = torch.randn(2, 5, 7)
    for k in range(6):
        assert keep_top(scores, k).sum(1).eq(k).all()
    per_position = torch.tensor([[0, 1, 2, 3, 4, 5, 5], [5, 4, 3, 2, 1, 0, 0]])
    assert torch.equal(keep_top(scores, per_position).sum(1), per_position)


def test_ties_go_to_the_lowest_head():
    assert keep_top(torch.zeros(1, 6, 1), 2)[0, :, 0].tolist() == [True, True, False, False, False, False]


def test_paper_entropy_ties_in_bf16_where_entropy_does_not():
    base = torch.full((1, 2, 1, 64), 1 / 64)
    base[0, 1, 0, :2] += torch.tensor([1e-3, -1e-3])
    assert paper_entropy(base.bfloat16())[0, 0] == paper_entropy(base.bfloat16())[0, 1]
    assert entropy(base)[0, 0] != entropy(base)[0, 1]


def test_ablate_touches_nothing_else():
    z = torch.randn(2, 3, 4, 5)
    keep = torch.rand(2, 3, 4) < 0.5
    edited = ablate(z, keep)
    assert torch.equal(edited[keep], z[keep])
    assert edited[~keep].eq(0).all()
