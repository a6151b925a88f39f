"""On a CUDA device: the tokens of the CPU under every kind of plan, checks that pass, kernels that are named."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import segregation as sg
from segregation.models import scan_triton
from segregation.models.attention import AttentionCall
from segregation.models.checks import apply_checks, run_checks
from segregation.models.entropy_attention import NAME, use_entropy_attention
from segregation.models.entropy_chunks import attend
from segregation.models.entropy_kernel import attend_on_gpu
from segregation.models.hybrid import HybridModel
from segregation.models.scan_linear import linear_scan
from segregation.probes.routes import routes
from segregation.prompts.benchmarks import facts
from segregation.prompts.grid import Grid
from segregation.prompts.pairs import corrupt_pairs
from tests.conftest import random_module
from tests.models.test_entropy_forms import call as attention_call
from tests.models.test_scans_fast import by_steps, inputs
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
    named = "mamba-ssm" in str(list(pair[1].description["kernels"].values()))
    assert named == (importlib.util.find_spec("mamba_ssm") is not None and pair[1].family.name == "jamba")


@pytest.mark.parametrize("family", CONFIGS)
def test_rules_act_as_on_the_cpu_in_every_family(
    family: str, tokenizer: object, samples: list[sg.Sample], tmp_path: Path
) -> None:
    cpu, gpu = (HybridModel(random_module(family).to(device), tokenizer, {}) for device in ("cpu", "cuda"))
    for model in (cpu, gpu):
        apply_checks(model, run_checks(model))
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
    unable = {*cpu.family.cannot, *(() if cpu.can_fork and gpu.can_fork else ("state", "conv"))}  # Falcon-H1, 5.17
    able = [plan for ability, plan in recurrent.items() if ability not in unable]
    plans = [sg.Plan(), *(heads if cpu.attention_layers else []), *(able if cpu.recurrent_layers else [])]
    on_cpu, on_gpu = (
        {(r.sample_id, r.plan_hash): r.loglikelihoods for r in sg.loglikelihood(model, long, plans)}
        for model in (cpu, gpu)
    )
    assert on_cpu.keys() == on_gpu.keys()
    for (name, plan), scores in on_cpu.items():
        assert on_gpu[name, plan] == pytest.approx(scores, abs=3e-3)  # the compiled kernels multiply in TF32
        assert plan == plans[0].hash or scores != on_cpu[name, plans[0].hash]


@pytest.fixture(scope="module", params=["tiny-recurrentgemma", "tiny-jamba"])
def spread(request: pytest.FixtureRequest) -> tuple[sg.HybridModel, sg.HybridModel]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    pytest.importorskip("accelerate")
    return sg.load_model(request.param, device_map="cuda"), sg.load_model(request.param, device_map="auto")


def test_a_model_over_two_devices_writes_what_one_writes(spread: tuple[sg.HybridModel, sg.HybridModel]) -> None:
    one, two = spread
    assert {str(parameter.device) for parameter in two.hf_model.parameters()} == {"cuda:0", "cuda:1"}
    assert not [check for check in run_checks(two) if check.failed]
    samples = Grid((128, 300), (0, 100)).samples(one.tokenizer)
    plans = [*PLANS, sg.Plan(sg.ResetState(every=50)), sg.Plan(sg.AblateRecurrent("skip", during=sg.Phase.LAST))]
    first, second = ({r.key: r.tokens for r in sg.generate(m, samples, plans, max_new_tokens=12)} for m in (one, two))
    assert first == second
    stacked = [m.intervene(PLANS[4]).intervene(PLANS[5]).intervene(PLANS[8]) for m in spread]
    first, second = ({r.key: r.tokens for r in sg.generate(m, samples, max_new_tokens=6)} for m in stacked)
    assert first == second


def test_probes_find_over_two_devices_what_they_find_over_one(spread: tuple[sg.HybridModel, sg.HybridModel]) -> None:
    samples = Grid((128,), (50,)).samples(spread[0].tokenizer)
    pairs = corrupt_pairs(spread[0].tokenizer, samples)
    found = []
    for model in spread:
        fork, knocked = sg.fork(model, [samples[0]] * 2), model.intervene(sg.KnockOut("needle", "question"))
        mixed = fork.mixed({"keys": [0, 1], "values": [1, 0], "recurrent": [1, 0], "conv": [0, 1]})
        (route, *_) = routes(model, pairs, "needle")
        shares = sg.span_shares(model, samples[0], src="needle", dest="last")
        found.append(
            [
                mixed.logits(torch.tensor([[5], [6]])).flatten().tolist(),
                knocked.trace(samples[0], trace=False).logits[0, -1].tolist(),
                list(route.values.values()),
                [number for share in shares for number in (share.by_norm, share.by_projection)],
            ]
        )
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.parametrize("sizes", [(3, 130, 70), (1, 2048, 2560), (2, 31, 33)])
def test_the_triton_scan_equals_the_loop_forward_and_backward(sizes: tuple[int, int, int]) -> None:
    assert scan_triton.available(torch.empty(1, device="cuda"))
    batch, length, width = sizes
    a, x, resets, start = (tensor.cuda() for tensor in inputs(batch, width, length))
    upstream = torch.randn_like(x)
    for some, initial in ((None, None), (resets, start), (None, start), (resets, None)):
        leaves = [tensor.clone().requires_grad_() for tensor in (a, x, initial) if tensor is not None]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        states = linear_scan(leaves[0], leaves[1], some, leaves[2] if initial is not None else None)
        expected = by_steps(exact[0], exact[1], some, exact[2] if initial is not None else None)
        torch.testing.assert_close(states.double(), expected, atol=1e-5, rtol=1e-5)
        got = torch.autograd.grad(states, leaves, upstream)
        for mine, true in zip(got, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
            torch.testing.assert_close(mine.double(), true, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", "zamba", "mamba"])
@torch.no_grad()
def test_scans_on_a_gpu_are_those_of_the_cpu_whole_and_in_pieces(family: str, tokenizer: object) -> None:
    cpu, gpu = (HybridModel(random_module(family).to(device), tokenizer, {}) for device in ("cpu", "cuda"))
    ids = torch.randint(3, 259, (2, 40), generator=torch.Generator().manual_seed(0))
    whole, cache = cpu.trace(ids, trace=False).logits, gpu.new_cache()
    torch.testing.assert_close(gpu.trace(ids.cuda(), trace=False).logits.cpu(), whole, atol=1e-4, rtol=1e-4)
    parts = [
        gpu.trace(piece.cuda(), past_key_values=cache, use_cache=True, trace=False).logits.cpu()
        for piece in ids.split([18, 2, 20], dim=1)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        {"queries": 300},
        {"queries": 300, "window": 70},
        {"queries": 65, "past": 200, "window": 100},
        {"queries": 300, "pads": (0, 190), "window": 70},
        {"queries": 200, "pads": (3, 64), "d_value": 6},
        {"queries": 130, "heads": 10, "kv": 1, "d_head": 256, "d_value": 256, "window": 64},
        {"queries": 1, "past": 40},
    ],
    ids=str,
)
def test_the_kernel_gives_what_its_twin_gives(shape: dict[str, Any], dtype: torch.dtype) -> None:
    """The twin runs on the same inputs, on the CPU."""
    given = attention_call(**shape, dtype=dtype)
    on_gpu = (one.to("cuda") for one in (given.query, given.key, given.value))
    mask = None if given.mask is None else given.mask.to("cuda")
    moved = AttentionCall(*on_gpu, mask, given.scaling, given.window)
    queries = given.query.shape[2]
    for start, stop in {(0, queries), (queries // 2, queries)}:
        expected, measured = attend(given, start, stop, ["entropy", "l2"])
        output, found = attend_on_gpu(moved, start, stop, ["entropy", "l2"])
        near = 2e-5 if dtype == torch.float32 else 2e-2  # bf16 weights, as in every fused attention
        assert (output.cpu().float() - expected.float()).abs().max() < near
        assert (found["entropy"].cpu() - measured["entropy"]).abs().max() < 3e-5
        assert (found["l2"].cpu() - measured["l2"]).abs().max() < 1e-5
    assert torch.equal(attend_on_gpu(moved)[0], output)  # measuring changes nothing


@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba"])
def test_plans_by_measured_rows_act_as_on_the_cpu(name: str) -> None:
    use_entropy_attention()
    samples = Grid((128, 300), (0, 100)).samples(sg.load_model(name).tokenizer)
    plans = [sg.Plan(), sg.Plan(sg.KeepTopHeads(4, during=sg.Phase.ALL)), sg.Plan(sg.HideTokens("needle"))]
    cpu, gpu = (
        {
            r.key: r.tokens
            for r in sg.generate(
                sg.load_model(name, device_map=device, attn_implementation=NAME), samples, plans, max_new_tokens=8
            )
        }
        for device in ("cpu", "cuda")
    )
    same = [cpu[key] == gpu[key] for key in cpu]
    assert cpu.keys() == gpu.keys() and sum(same) / len(same) >= 0.9
