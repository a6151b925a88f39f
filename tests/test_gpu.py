"""On a CUDA device: the tokens of the CPU under every kind of plan, checks that pass, kernels that are named."""

import importlib.util
from pathlib import Path

import pytest
import torch

import segregation as sg
from segregation.models.checks import run_checks
from segregation.models.hybrid import HybridModel
from segregation.prompts.benchmarks import facts
from segregation.prompts.grid import Grid
from tests.conftest import random_module
from tests.tiny import CONFIGS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PLANS = [
    sg.Plan(),
    sg.Plan(sg.KeepTopHeads(4, during=sg.Phase.GENERATION)),
    sg.Plan(sg.AblateHeads("all", during=sg.Phase.DECODE)),
    sg.Plan(sg.AblateHeads("all", during=sg.Phase.PREFILL)),
    sg.Plan(sg.KeepTopHeads(4, "l2", during=sg.Phase.ALL)),
    sg.Plan(sg.HideTokens("needle", during=sg.Phase.GENERATION)),
    sg.Plan(sg.HideTokens("context", but="needle")),
    sg.Plan(sg.OnlyTokens("needle"), sg.KeepTopHeads(4)),
    sg.Plan(sg.paper(sg.BalanceTokens("needle", during=sg.Phase.PREFILL))),
]


@pytest.fixture(scope="module", params=["tiny-recurrentgemma", "tiny-jamba"])
def pair(request: pytest.FixtureRequest) -> tuple[sg.HybridModel, sg.HybridModel]:
    return sg.load_model(request.param), sg.load_model(request.param, device_map="cuda")


def test_checks_pass(pair: tuple[sg.HybridModel, sg.HybridModel]) -> None:
    failed = [check for check in run_checks(pair[1]) if check.failed]
    assert not failed


def test_tokens_are_those_of_the_cpu_for_nearly_every_row(pair: tuple[sg.HybridModel, sg.HybridModel]) -> None:
    samples = Grid((128, 300, 500), (0, 50, 100)).samples(pair[0].tokenizer)
    cpu, gpu = ({r.key: r.tokens for r in sg.generate(m, samples, PLANS, max_new_tokens=12)} for m in pair)
    assert cpu.keys() == gpu.keys()
    same = [cpu[key] == gpu[key] for key in cpu]
    assert sum(same) / len(same) >= 0.9  # ablated models babble, and near-ties fall either way
    base = [key for key in cpu if PLANS[0].hash in key]
    assert all(cpu[key] == gpu[key] for key in base)


def test_loglikelihoods_are_those_of_the_cpu(pair: tuple[sg.HybridModel, sg.HybridModel]) -> None:
    cpu, gpu = ({r.key: r.loglikelihoods for r in sg.loglikelihood(m, facts(20), PLANS[:2])} for m in pair)
    assert cpu.keys() == gpu.keys()
    for key in cpu:
        assert gpu[key] == pytest.approx(cpu[key], abs=2e-3)


def test_kernels_are_named(pair: tuple[sg.HybridModel, sg.HybridModel]) -> None:
    named = "mamba-ssm" in str(pair[1].description["kernels"])
    assert named == (importlib.util.find_spec("mamba_ssm") is not None and pair[1].family.name == "jamba")


@pytest.mark.parametrize("family", CONFIGS)
def test_rules_act_as_on_the_cpu_in_every_family(
    family: str, tokenizer: object, samples: list[sg.Sample], tmp_path: Path
) -> None:
    cpu, gpu = (HybridModel(random_module(family).to(device), tokenizer, {}) for device in ("cpu", "cuda"))
    failed = [check for check in run_checks(gpu) if check.failed and check.consequence == "refused"]
    assert not failed
    long = [sample for sample in samples if len(sample.prompt) > 10]
    other = [sg.Sample(id=sample.id, prompt=sample.prompt[::-1], target="xyz") for sample in long]
    sg.prompt_memories(cpu, other, tmp_path / "memories.safetensors")
    heads = [
        sg.Plan(sg.AblateHeads("all", during=sg.Phase.DECODE)),
        sg.Plan(sg.KeepTopHeads(2, during=sg.Phase.GENERATION)),
        sg.Plan(sg.KeepTopHeads(1, "l2", during=sg.Phase.PREFILL)),
    ]
    recurrent = {
        "": sg.Plan(sg.AblateRecurrent("zero", during=sg.Phase.DECODE)),
        "skip": sg.Plan(sg.AblateRecurrent("skip", during=sg.Phase.PREFILL)),
        "reset": sg.Plan(sg.ResetState(every=5)),
        "state": sg.Plan(sg.PatchState(str(tmp_path / "memories.safetensors"), "recurrent")),
        "conv": sg.Plan(sg.PatchState(str(tmp_path / "memories.safetensors"), "conv")),
    }
    able = [plan for ability, plan in recurrent.items() if ability not in cpu.family.cannot]
    plans = [sg.Plan(), *(heads if cpu.attention_layers else []), *(able if cpu.recurrent_layers else [])]
    on_cpu, on_gpu = (
        {(r.sample_id, r.plan_hash): r.loglikelihoods for r in sg.loglikelihood(model, long, plans)}
        for model in (cpu, gpu)
    )
    assert on_cpu.keys() == on_gpu.keys()
    for (name, plan), scores in on_cpu.items():
        assert on_gpu[name, plan] == pytest.approx(scores, abs=1e-3)
        base = on_cpu[name, plans[0].hash]
        assert plan == plans[0].hash or max(abs(a - b) for a, b in zip(base, scores, strict=True)) > 2e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba"])
def test_a_model_over_two_devices_writes_what_one_writes(name: str) -> None:
    pytest.importorskip("accelerate")
    one = sg.load_model(name, device_map="cuda")
    half = one.n_layers // 2
    layers = {f"model.layers.{layer}": int(layer >= half) for layer in range(one.n_layers)}
    two = sg.load_model(name, device_map={"model.embed_tokens": 0, "lm_head": 0, **layers, "model": 1})
    assert {str(parameter.device) for parameter in two.hf_model.parameters()} == {"cuda:0", "cuda:1"}
    assert not [check for check in run_checks(two) if check.failed]
    samples = Grid((128, 300), (0, 100)).samples(one.tokenizer)
    plans = [*PLANS, sg.Plan(sg.ResetState(every=50)), sg.Plan(sg.AblateRecurrent("skip", during=sg.Phase.LAST))]
    first, second = ({r.key: r.tokens for r in sg.generate(m, samples, plans, max_new_tokens=12)} for m in (one, two))
    assert first == second
