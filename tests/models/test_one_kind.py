"""Models whose layers are all attention or all recurrent, the controls beside a hybrid, against plain transformers."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import segregation as sg
from segregation.errors import PlanError
from segregation.models.checks import run_checks
from segregation.models.hybrid import HybridModel
from tests.conftest import random_module

KINDS = {
    ("recurrentgemma", "attention"): {"block_types": ["attention"]},
    ("recurrentgemma", "recurrent"): {"block_types": ["recurrent"]},
    ("jamba", "attention"): {"attn_layer_period": 1, "attn_layer_offset": 0},
    ("jamba", "recurrent"): {"attn_layer_period": 100, "attn_layer_offset": 99},
}


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def control(request: pytest.FixtureRequest, build) -> tuple[HybridModel, PreTrainedModel, str]:
    """A model of one kind, the same module never wrapped, and the kind."""
    family, kind = request.param
    return build(family, **KINDS[request.param]), random_module(family, **KINDS[request.param]), kind


def greedy(module: PreTrainedModel, ids: list[int], n: int) -> list[int]:
    """Without a cache: every token from a forward over all that went before."""
    for _ in range(n):
        with torch.no_grad():
            ids = [*ids, int(module(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
        if ids[-1] == module.config.eos_token_id:
            break
    return ids


def test_its_layers_are_of_one_kind_and_every_check_passes(control) -> None:
    model, _, kind = control
    assert set(model.layer_types) == {kind}
    assert [len(model.attention_layers) > 0, len(model.recurrent_layers) > 0] == [
        kind == "attention",
        kind != "attention",
    ]
    assert [check.name for check in run_checks(model) if check.failed] == []


def test_tokens_are_those_of_plain_transformers_without_a_cache(control, samples) -> None:
    model, module, _ = control
    prompts = {sample.id: model.encode(sample) for sample in samples}
    for record in sg.generate(model, samples, max_new_tokens=5):
        prompt = prompts[record.sample_id]
        assert [*prompt, *record.tokens] == greedy(module, prompt, 5)


def test_generate_of_transformers_goes_on_right_too(control) -> None:
    model, module, _ = control
    ids = torch.tensor([model.encode("abc defgh ijk")])
    with torch.no_grad():
        found: Tensor = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert found[0].tolist() == greedy(module, ids[0].tolist(), 5)


def test_scores_are_those_of_plain_transformers(control, samples) -> None:
    model, module, _ = control
    for record in sg.loglikelihood(model, samples[:3]):
        sample = next(sample for sample in samples if sample.id == record.sample_id)
        prompt = model.encode(sample)
        for choice, score in zip(sample.choices, record.loglikelihoods, strict=True):
            rest = model.encode_continuation(choice)
            with torch.no_grad():
                logs = module(torch.tensor([[*prompt, *rest]]), use_cache=False).logits[0].log_softmax(-1)
            expected = sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(rest))
            assert score == pytest.approx(expected, abs=2e-5)


def test_rules_about_the_other_kind_are_refused(control) -> None:
    model, _, kind = control
    rules = [sg.AblateRecurrent("zero"), sg.ResetState(every=4)] if kind == "attention" else [sg.AblateMixer()]
    for rule in rules:
        with pytest.raises(PlanError, match=rf"all of its layers are {kind}"):
            model.intervene(sg.Plan(rule))
