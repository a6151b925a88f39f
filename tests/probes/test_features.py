import numpy as np
import pytest
import torch

from segregation.errors import SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.models.channels import read_channel
from segregation.models.hybrid import HybridModel
from segregation.probes import features as module
from segregation.probes.features import Feature, feature_layers, needle_features
from segregation.probes.linear import hashed
from segregation.probes.samples import ProbeSamples
from segregation.prompts.sample import Sample

DISTANCES = (0, 3, 9)


@pytest.fixture(scope="module")
def samples(tokenizer) -> list[Sample]:
    return ProbeSamples(needles=2, haystacks=2, blocks=2, before=30, after=10).samples(tokenizer)[:3]


def layer_outputs(model: HybridModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """The output of every layer, by plain hooks on one forward."""
    found: list[torch.Tensor] = []
    layers = model.hf_model.get_submodule(model.family.layers)
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    with torch.no_grad():
        model.hf_model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def test_features_are_those_of_one_forward_over_the_prompt_up_to_there(any_scan: HybridModel, samples):
    model = any_scan
    found = dict(needle_features(model, samples, DISTANCES, batch_size=2))
    ids = torch.tensor([model.encode(sample) for sample in samples])
    end = samples[0].metadata["needle_end"]
    outputs = layer_outputs(model, ids)
    for distance in DISTANCES:
        for layer in range(model.n_layers):
            got = found[Feature("residual", layer, distance)]
            np.testing.assert_allclose(got, outputs[layer][:, end + distance].numpy(), atol=2e-4, rtol=1e-3)
        model.reset()
        with torch.no_grad():
            cache = model.new_cache()
            model.hf_model(ids[:, : end + distance + 1], past_key_values=cache, use_cache=True)
        for kind in ("recurrent", "conv"):
            for layer in feature_layers(model, kind):
                want = read_channel(model, cache, layer, kind).flatten(1).numpy()
                got = found[Feature(kind, layer, distance)]
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, atol=2e-4, rtol=1e-3)
    n_features = model.n_layers + 2 * len(model.recurrent_layers)
    assert len(found) == n_features * len(DISTANCES)
    model.reset()


def test_wide_features_are_hashed_the_same_way_in_every_batch(
    model: HybridModel, samples, monkeypatch: pytest.MonkeyPatch
):
    whole = dict(needle_features(model, samples, (0,)))
    monkeypatch.setattr(module, "WIDTH", 10)
    for feature, found in needle_features(model, samples, (0,), batch_size=2):
        np.testing.assert_allclose(found, hashed(whole[feature], 10, seed=feature.layer), atol=1e-4)


def test_a_carried_plan_acts_in_its_phases(model: HybridModel, samples):
    plan = Plan(AblateHeads(during=Phase.PREFILL))
    layer, distance = model.n_layers - 1, 3
    at = samples[0].metadata["needle_end"] + distance
    found = dict(needle_features(model.intervene(plan), samples, (distance,)))[Feature("residual", layer, distance)]
    got: list[torch.Tensor] = []
    last = model.hf_model.get_submodule(model.family.layers)[layer]
    hook = last.register_forward_hook(lambda _m, _i, out: got.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model.intervene(plan).trace(samples, trace=False)
    hook.remove()
    np.testing.assert_allclose(found, got[0][:, at].numpy(), atol=2e-4)
    clean = dict(needle_features(model, samples, (distance,)))[Feature("residual", layer, distance)]
    assert np.abs(found - clean).max() > 0.01


def test_prompts_that_are_not_aligned_and_distances_outside_are_refused(model: HybridModel, samples):
    other = Sample(id="x", prompt="short", target="t", metadata={"needle_end": 3})
    with pytest.raises(SampleError, match="need one length"):
        needle_features(model, [*samples, other], (0,))
    with pytest.raises(SampleError, match="lie in 0"):
        needle_features(model, samples, (0, 1000))
