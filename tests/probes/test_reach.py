"""Exactly how far a model sees, on tiny random models with a small window and on models without attention."""

import pytest
import torch

from segregation.errors import ModelError, PlanError
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.probes.reach import CUT, certify, certify_span, reach
from segregation.prompts.sample import Sample
from tests.conftest import random_module
from tests.interventions.plain_mixers import plain_mixer

ALL_RECURRENT = {
    "recurrentgemma": {"block_types": ["recurrent"]},
    "jamba": {"attn_layer_period": 100, "attn_layer_offset": 50, "num_experts": 4, "num_experts_per_tok": 2},
    "bamba": {"attn_layer_indices": []},
}


@pytest.fixture(scope="module", params=["windowed", *ALL_RECURRENT])
def limited(request: pytest.FixtureRequest, tokenizer) -> HybridModel:
    """A model that sees only so far once its state path is cut."""
    if request.param == "windowed":
        return HybridModel(random_module("recurrentgemma", attention_window_size=4), tokenizer)
    return HybridModel(random_module(request.param, **ALL_RECURRENT[request.param]), tokenizer)


def text(model: HybridModel, tokens: int) -> list[int]:
    return torch.randint(3, model.d_vocab, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()


def test_the_certificate_holds_beyond_the_reach_and_not_at_it(limited: HybridModel):
    far = reach(limited)
    n = far + 20
    tokens = text(limited, n)
    at_reach = certify(limited, tokens, [n - 1 - far])
    beyond = certify(limited, tokens, [n - 2 - far])
    all_beyond = certify(limited, tokens, range(n - 1 - far))
    assert at_reach.distance == far and not at_reach.holds
    assert beyond.distance == all_beyond.distance == far + 1
    assert beyond.holds and all_beyond.holds
    assert all_beyond.change_with_state > 0  # it is the state that carries them


def test_the_reach_counts_windows_and_convolutions(build, tokenizer):
    assert reach(build("recurrentgemma")) == 2 * (16 - 1) + 4 * (4 - 1)
    assert reach(build("recurrentgemma", attention_window_size=4, conv1d_width=2)) == 2 * (4 - 1) + 4 * (2 - 1)
    assert reach(HybridModel(random_module("jamba", **ALL_RECURRENT["jamba"]), tokenizer)) == 4 * (4 - 1)


def test_cutting_is_a_loop_in_which_every_state_is_what_its_token_writes(any_scan: HybridModel):
    tokens = torch.tensor([text(any_scan, 30)])
    every = torch.ones(1, 30, dtype=torch.bool)
    mixers = [any_scan.mixer(layer)._module for layer in any_scan.recurrent_layers]
    handles = [m.register_forward_hook(plain_mixer(any_scan, reset=every), with_kwargs=True) for m in mixers]
    with torch.no_grad():
        any_scan.reset()
        expected = any_scan.hf_model(tokens).logits
        for handle in handles:
            handle.remove()
        got = any_scan.intervene(CUT).trace(tokens, trace=False).logits
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


def test_a_span_is_certified_by_its_tokens(limited: HybridModel):
    sample = Sample("a", "needle " + "hay " * 40, "x", spans={"needle": ((0, 6),)})
    certificate = certify_span(limited, sample, draws=1)
    last = len(limited.encode(sample)) - 1
    assert certificate.distance == last - 6  # after <bos>, a byte a token
    assert certificate.holds and certificate.reach < certificate.distance


def test_what_has_no_certificate_is_refused(build):
    unlimited, windowed = build("jamba"), build("recurrentgemma")
    with pytest.raises(ModelError, match=r"\[1, 3\] have no window"):
        reach(unlimited)
    for replaced, draws in (([], 1), ([-1], 1), ([9], 1), ([0], 0)):
        with pytest.raises(PlanError, match=r"positions 0..8"):
            certify(windowed, text(windowed, 10), replaced, draws=draws)
    with pytest.raises(PlanError, match="untouched"):
        certify(windowed.intervene(Plan()), text(windowed, 10), [0])
