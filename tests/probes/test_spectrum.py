"""Receptive fields, half-lives and ranks of recurrences made by hand, and of random models against plain arithmetic."""

import math

import pytest
import torch

from segregation.models.hybrid import HybridModel
from segregation.models.recurrence import Recurrence, walk
from segregation.probes.contributions import contribution_norms
from segregation.probes.spectrum import effective_rank, half_lives, layer_memories, receptive_field
from tests.models.test_scan_inputs import read
from tests.probes.test_contributions import SAMPLE


def decaying(*factors: float, length: int = 40) -> Recurrence:
    """One row, a head for each factor, which is the same at every token; every token writes 1."""
    step = torch.tensor(factors).log().expand(1, length, -1)
    ones = torch.ones(1, length, 1, 1)
    write = torch.ones(1, length, len(factors), 1)
    return Recurrence(step, torch.ones(len(factors), 1), ones[..., 0, 0] < 0, write, ones, ones)


def test_the_receptive_field_of_a_constant_decay_is_that_of_a_geometric_series():
    """E[t - s] with weights a^d, d = 0..t, is sum d a^d / sum a^d; a / (1 - a) in the limit."""
    for a in (0.25, 0.5, 0.9):
        dests = [3, 39]
        expected = [sum(d * a**d for d in range(t + 1)) / sum(a**d for d in range(t + 1)) for t in dests]
        norms = contribution_norms(decaying(a), dests)
        assert receptive_field(norms, dests).item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert receptive_field(contribution_norms(decaying(0.5), [39]), [39]).item() == pytest.approx(1, rel=1e-5)


def test_a_token_that_hears_itself_alone_has_a_field_of_zero_and_silence_is_left_out():
    norms = torch.tensor([[[0.0, 0, 0, 0], [0, 2.0, 0, 0], [1.0, 0, 0, 1.0]]])
    assert receptive_field(norms, [0, 1, 3]).tolist() == [0.75]


def test_half_lives_are_the_tokens_after_which_half_is_left():
    recurrence = decaying(0.5, 0.5**0.1, 0.25)
    torch.testing.assert_close(half_lives(recurrence)[0, :, 0], torch.tensor([1.0, 10.0, 0.5]))
    assert next(walk(recurrence))[0, 1] == 1
    quiet = decaying(0.5**0.1, length=11)
    quiet.write[:, 1:] = 0
    assert list(walk(quiet))[10].item() == pytest.approx(0.5)


def test_the_half_life_is_the_median_over_tokens_without_resets():
    recurrence = decaying(0.5, length=5)
    step = torch.tensor([0.5, 0.25, 0.25, 0.5, 0.5**0.25]).log()[None, :, None]
    reset = torch.tensor([[True, False, False, True, False]])  # leaves 0.5, 0.5, 4 tokens
    of = Recurrence(step, recurrence.rate, reset, recurrence.write, recurrence.keys, recurrence.reads)
    assert half_lives(of).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.ones(5, 3), 1),
        (torch.eye(4) * 7, 4),
        (torch.zeros(2, 3), 0),
        (torch.diag(torch.tensor([3.0, 1.0])), math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_effective_rank_of_matrices_made_by_hand(matrix: torch.Tensor, rank: float):
    assert effective_rank(matrix).item() == pytest.approx(rank, rel=1e-5)
    rotation = torch.linalg.qr(torch.randn(len(matrix), len(matrix), generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(torch.stack([matrix, rotation @ matrix]))[1].item() == pytest.approx(rank, rel=1e-4)


def test_a_models_layers_are_measured_from_their_scans(any_scan: HybridModel):
    found = layer_memories(any_scan, SAMPLE, "question+last")
    dests = [31, 32, 33, 34, 35, 36, 37, 38, 39, 40, len(any_scan.encode(SAMPLE)) - 1]
    tokens = torch.tensor([any_scan.encode(SAMPLE)])
    assert [one.layer for one in found] == list(any_scan.recurrent_layers)
    for memory, (recurrence, _) in zip(found, read(any_scan, tokens).values(), strict=True):
        length = tokens.shape[1]
        decays = torch.stack([recurrence.decay(t)[0] for t in range(length) if not recurrence.reset[0, t]])
        lives = (math.log(2) / -decays.double().log()).median(dim=0).values
        assert memory.half_life == pytest.approx(float(lives.quantile(0.5)), rel=1e-3)
        assert memory.half_life <= memory.long_half_life == pytest.approx(float(lives.quantile(0.9)), rel=1e-3)
        states = torch.stack([state[0] for at, state in enumerate(walk(recurrence)) if at in dests])
        assert memory.rank == pytest.approx(float(effective_rank(states.flatten(1))), rel=1e-5)
        assert 1 <= memory.rank <= len(dests)
        if any_scan.family.scan == "rg_lru":
            assert math.isnan(memory.matrix_rank)
        else:  # mamba: channel by d_state; mamba2: a matrix for each head
            matrices = states[:, :, 0] if any_scan.family.scan == "mamba" else states.flatten(0, 1)
            ranks = [float(effective_rank(matrix)) for matrix in matrices]
            assert memory.matrix_rank == pytest.approx(sum(ranks) / len(ranks), rel=1e-5)
        norms = contribution_norms(recurrence, dests)[0]
        field = [(row * (t - torch.arange(length))).sum() / row.sum() for row, t in zip(norms, dests, strict=True)]
        assert memory.receptive_field == pytest.approx(float(sum(field)) / len(dests), rel=1e-4)
