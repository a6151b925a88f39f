"""Products by oneDNN are those of torch to rounding, with gradients, in whole models, and by choice."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.jamba.modeling_jamba import JambaExperts

import segregation as sg
from segregation.errors import ModelError
from segregation.models import matmuls
from segregation.models.matmuls import Linear, check_matmuls, linear, run_experts, use_matmuls
from tests.conftest import random_module

needs_onednn = pytest.mark.skipif(not matmuls.HAS_ONEDNN, reason="this build of torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(16, 5), (1, 3), (2, 40, 5), (0, 5), (700, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, requires_grad=True)
    weight = torch.randn(7, shape[-1], generator=generator, requires_grad=True)
    leaves = [x, weight] + [torch.randn(7, generator=generator, requires_grad=True)] * bias
    mine, theirs = linear(*leaves), nn.functional.linear(*leaves)
    assert mine.shape == theirs.shape
    assert_close(mine, theirs, atol=1e-4, rtol=1e-5)
    upstream = torch.randn_like(theirs)
    for got, true in zip(
        torch.autograd.grad(mine, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream), strict=True
    ):
        assert_close(got, true, atol=1e-3, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(linear(*leaves), mine)  # whether a gradient is wanted changes nothing


@needs_onednn
def test_a_bias_alone_gets_its_gradient() -> None:
    bias = torch.zeros(3, requires_grad=True)
    linear(torch.ones(20, 4), torch.ones(3, 4), bias).sum().backward()
    assert bias.grad is not None and bias.grad.tolist() == [20.0] * 3


@needs_onednn
def test_the_gradient_of_a_gradient_is_that_of_torch() -> None:
    x = torch.randn(20, 4, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(3, 4, requires_grad=True)
    found = []
    for form in (linear, nn.functional.linear):
        (first,) = torch.autograd.grad(form(x, weight).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), weight)[0])
    assert_close(found[0], found[1], atol=1e-2, rtol=1e-3)


def test_a_bias_may_be_a_view() -> None:
    x, weight, bias = torch.randn(40, 64), torch.randn(50, 64), torch.randn(100)[::2]
    assert_close(linear(x, weight, bias), nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


def test_what_torch_alone_derives_or_casts_goes_to_torch() -> None:
    x, weight = torch.randn(40, 64), torch.randn(50, 64)

    def loss(form: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda weight: form(x, weight).square().mean()

    gradients = [torch.func.grad(loss(form))(weight) for form in (linear, nn.functional.linear)]
    assert_close(*gradients)
    tangents = [
        torch.func.jvp(loss(form), (weight,), (x[:1].expand(50, -1),))[1] for form in (linear, nn.functional.linear)
    ]
    assert_close(*tangents)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(linear(dual, weight)).tangent is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


@needs_onednn
def test_what_is_no_fp32_or_not_on_a_cpu_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> torch.Tensor:
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(matmuls, "_multiply", never)
    for dtype in (torch.bfloat16, torch.float64):
        assert linear(torch.ones(32, 2, dtype=dtype), torch.ones(1, 2, dtype=dtype)).dtype == dtype
    assert linear(torch.ones(32, 2, device="meta"), torch.ones(1, 2, device="meta")).shape == (32, 1)
    with pytest.raises(AssertionError, match="oneDNN was called"):
        linear(torch.ones(32, 2), torch.ones(1, 2))


def test_experts_add_up_as_those_of_transformers() -> None:
    experts = random_module("jamba").model.layers[1].feed_forward.experts
    assert isinstance(experts, JambaExperts)
    hidden = torch.randn(50, experts.gate_up_proj.shape[-1])
    weights, index = torch.rand(50, experts.num_experts).topk(2)
    index[0] = experts.num_experts  # none, as for tokens of experts elsewhere
    experts.config._experts_implementation = "eager"
    assert_close(run_experts(experts, hidden, index, weights), experts(hidden, index, weights), atol=1e-5, rtol=1e-4)


@needs_onednn
@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", "bamba", "qwen3_next"])
def test_whole_models_agree_and_keep_their_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmuls, "helps", lambda: True)
    plain, ours = random_module(family), random_module(family)
    assert use_matmuls(ours, "fast") == "onednn"
    kinds = {type(part) for part in ours.modules() if isinstance(part, nn.Linear)}
    assert kinds == {Linear}
    ids = torch.randint(3, 250, (2, 40))
    grads = []
    for module in (plain, ours):
        logits = module(ids, use_cache=False).logits
        logits.square().mean().backward()
        grads.append((logits.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}))
    assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-3)


def test_the_form_is_a_choice_that_stands_in_the_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmuls, "helps", lambda: True)
    fast = sg.load_model("tiny-jamba")
    plain = sg.load_model("tiny-jamba", matmuls="transformers")
    assert (fast.description["matmuls"], plain.description["matmuls"]) == ("onednn", "torch")
    assert sg.load_model("tiny-jamba", dtype=torch.bfloat16).description["matmuls"] == "torch"
    monkeypatch.setattr(matmuls, "helps", lambda: False)
    assert sg.load_model("tiny-jamba").description["matmuls"] == "torch"
    ids = torch.arange(3, 63)[None]
    with torch.no_grad():
        mine, theirs = (model.trace(ids, trace=False).logits for model in (fast, plain))
    assert 0 < (mine - theirs).abs().max() < 1e-3
    with pytest.raises(ModelError, match=r"matmuls must be one of 'fast', 'transformers', got 'slow'"):
        check_matmuls("slow")


@pytest.mark.parametrize(
    ("capability", "vendor", "expected"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_which_library_is_used_depends_on_the_cpu_alone(
    capability: str, vendor: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(matmuls.Path, "exists", lambda _: True)
    monkeypatch.setattr(matmuls.Path, "read_text", lambda _: f"vendor_id : {vendor}\n")
    assert matmuls.helps.__wrapped__() is (expected and hasattr(torch.ops.mkldnn, "_linear_pointwise"))
