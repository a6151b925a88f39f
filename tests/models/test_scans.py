import inspect

import pytest
import torch
from transformers.models.jamba import modeling_jamba

from segregation.models.scans import mamba2_scan, mamba2_scan_from, mamba_scan, rg_lru_scan
from tests.conftest import random_module

SHAPES = [(1, 64, 70), (2, 32, 33), (3, 48, 2), (1, 512, 100)]


@pytest.mark.parametrize(("batch", "width", "length"), SHAPES)
def test_rg_lru_is_bit_identical_to_transformers(batch: int, width: int, length: int):
    unit = random_module("recurrentgemma").model.layers[0].temporal_block.rg_lru
    x, gate = torch.randn(batch, length, width), torch.rand(batch, length, width)
    reset = torch.rand(batch, length, 1) < 0.1
    for start in (None, torch.randn(batch, width)):
        expected = unit._rnn_scan(hidden_states=x, recurrent_gate=gate, reset=reset, recurrent_states=start)
        got = rg_lru_scan(hidden_states=x, recurrent_gate=gate, reset=reset, recurrent_states=start)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize(("batch", "width", "length"), SHAPES)
@pytest.mark.parametrize("d_state", [4, 16])
def test_mamba_is_bit_identical_to_transformers(batch: int, width: int, length: int, d_state: int):
    original = inspect.unwrap(modeling_jamba.mamba_selective_scan)
    u, dt = torch.randn(batch, width, length), torch.rand(batch, width, length)
    a, b, c = -torch.rand(width, d_state) * 4, torch.randn(batch, d_state, length), torch.randn(batch, d_state, length)
    expected = original(u, dt, a, b, c, return_last_state=True)
    got = mamba_scan(u, dt, a, b, c)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_mamba2_token_by_token_equals_the_scan_in_chunks():
    """transformers' own scan in chunks of 8, over 21 tokens, from a state that is not zero, with a limited step."""
    from transformers.models.bamba.modeling_bamba import mamba2_chunk_scan

    generator = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(2, 21, *shape, generator=generator) for shape in ((4, 3), (2, 5), (2, 5)))
    dt, bias, d, start = (torch.randn(*shape, generator=generator) for shape in ((2, 21, 4), (4,), (4,), (2, 4, 3, 5)))
    options = {"D": d, "dt_bias": bias, "dt_softplus": True, "initial_states": start, "return_final_states": True}
    a = -torch.rand(4, generator=generator)
    expected = mamba2_chunk_scan(x, dt, a, b, c, chunk_size=8, dt_limit=(0.1, 2.0), **options)
    for got, chunked in zip(mamba2_scan_from(x, dt, a, b, c, dt_limit=(0.1, 2.0), **options), expected, strict=True):
        torch.testing.assert_close(got, chunked, atol=1e-5, rtol=1e-5)


def test_a_reset_begins_a_new_sequence():
    """After a reset at 8 every scan gives what it gives for the tokens from 8 on alone."""
    generator = torch.Generator().manual_seed(0)
    resets = torch.zeros(2, 21, dtype=torch.bool)
    resets[:, 8] = True
    x, b, c = (torch.randn(2, 21, *shape, generator=generator) for shape in ((4, 3), (2, 5), (2, 5)))
    dt = torch.rand(2, 21, 4, generator=generator)
    whole = mamba2_scan(x, dt, -torch.ones(4), b, c, resets=resets)
    alone = mamba2_scan(x[:, 8:], dt[:, 8:], -torch.ones(4), b[:, 8:], c[:, 8:])
    assert torch.equal(whole[0][:, 8:], alone[0]) and torch.equal(whole[1], alone[1])
    u, step, a = x.flatten(2).mT, torch.rand(2, 12, 21, generator=generator), -torch.rand(12, 5, generator=generator)
    keys, reads = b[:, :, 0].mT, c[:, :, 0].mT
    whole = mamba_scan(u, step, a, keys, reads, resets)
    alone = mamba_scan(u[..., 8:], step[..., 8:], a, keys[..., 8:], reads[..., 8:])
    assert torch.equal(whole[0][..., 8:], alone[0]) and torch.equal(whole[1], alone[1])


def test_mamba_goes_on_from_a_state():
    """Two halves, the second from the state of the first, are the whole, bit for bit."""
    x, dt = torch.randn(2, 6, 20), torch.rand(2, 6, 20)
    a, b, c = -torch.rand(6, 4), torch.randn(2, 4, 20), torch.randn(2, 4, 20)
    whole = mamba_scan(x, dt, a, b, c)
    first = mamba_scan(x[..., :9], dt[..., :9], a, b[..., :9], c[..., :9])
    second = mamba_scan(x[..., 9:], dt[..., 9:], a, b[..., 9:], c[..., 9:], initial=first[1])
    assert torch.equal(torch.cat([first[0], second[0]], dim=-1), whole[0])
    assert torch.equal(second[1], whole[1])
