"""The parallel scans are as exact as transformers' own, in every form they take, with gradients, and by choice."""

import functools
import inspect

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from transformers.models.jamba import modeling_jamba

from segregation.errors import ModelError
from segregation.models import compiled_loops, scan_choice, scan_compiled, scan_linear, scan_mamba
from segregation.models.hybrid import HybridModel
from segregation.models.scan_choice import reference_on_cpu, use_scans
from segregation.models.scan_linear import linear_scan, scan_in_two_levels
from segregation.models.scan_mamba import fast_selective_scan, fast_selective_step, selective_scan_in_blocks
from segregation.models.scans import selective_scan
from tests.conftest import random_module

SIZES = [(1, 256, 700), (2, 33, 41), (1, 2, 3), (3, 700, 50), (1, 5, 1)]


@pytest.fixture(params=["compiled", "in PyTorch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms that the fast scans take on a CPU."""
    if request.param == "in PyTorch":
        monkeypatch.setattr(compiled_loops, "numba", None)
    return request.param


def by_steps(a: Tensor, x: Tensor, resets: Tensor | None, initial: Tensor | None) -> Tensor:
    state = torch.zeros_like(x[:, 0]) if initial is None else initial.to(x)
    found = []
    for t in range(x.shape[1]):
        state = (a[:, t] if resets is None else a[:, t].masked_fill(resets[:, t, None], 0)) * state + x[:, t]
        found.append(state)
    return torch.stack(found, dim=1)


def inputs(batch: int, width: int, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factors that may be 0 or 1, writes, resets and a state."""
    generator = torch.Generator().manual_seed(0)
    a = (torch.rand(batch, length, width, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    x = torch.randn(batch, length, width, generator=generator)
    resets = torch.rand(batch, length, generator=generator) < 0.1
    return a, x, resets, torch.randn(batch, width, generator=generator)


@pytest.mark.parametrize(("batch", "width", "length"), SIZES)
@pytest.mark.parametrize("wide", [0, 10**9])
@pytest.mark.parametrize("block", [64, 2**18])
def test_linear_scan_is_as_near_to_fp64_as_transformers(
    batch: int, width: int, length: int, wide: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two levels, which have the sizes, and compiled."""
    monkeypatch.setattr(scan_linear, "WIDE", wide)
    monkeypatch.setattr(scan_linear, "BLOCK", block * (1 if block > 64 else batch * width))
    a, x, resets, start = inputs(batch, width, length)
    unit = random_module("recurrentgemma").model.layers[0].temporal_block.rg_lru
    for some, initial in ((None, None), (resets, start), (None, start), (resets, None)):
        exact = by_steps(a.double(), x.double(), some, initial)
        reset = torch.zeros(batch, length, 1, dtype=torch.bool) if some is None else some[..., None]
        own = unit._rnn_scan(hidden_states=x, recurrent_gate=a, reset=reset, recurrent_states=initial)[0]
        for scan in (scan_in_two_levels, scan_compiled.linear_scan):
            error = (scan(a, x, some, initial) - exact).abs().max()
            assert error <= max(1.5 * (own - exact).abs().max(), torch.tensor(2e-7))


@pytest.mark.usefixtures("form")
def test_linear_scan_reads_bf16_and_scans_in_fp32() -> None:
    a, x, resets, start = inputs(2, 33, 100)
    a, x = a.bfloat16(), x.bfloat16()
    found = linear_scan(a, x, resets, start)
    assert found.dtype == torch.float32
    assert_close(found, by_steps(a.double(), x.double(), resets, start).float(), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("batch", "width", "length"), SIZES)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.usefixtures("form")
def test_gradients_of_the_linear_scan_are_those_of_the_loop(batch: int, width: int, length: int, given: bool) -> None:
    a, x, resets, start = inputs(batch, width, length)
    some, upstream = resets if given else None, torch.randn(batch, length, width)
    leaves = [a.clone().requires_grad_(), x.clone().requires_grad_(), *([start.clone().requires_grad_()] * given)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    states = linear_scan(leaves[0], leaves[1], some, leaves[2] if given else None)
    expected = by_steps(exact[0], exact[1], some, exact[2] if given else None)
    got = torch.autograd.grad(states, leaves, upstream)
    for mine, true in zip(got, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert_close(mine.double(), true, atol=1e-5, rtol=1e-5)


def mamba_inputs(batch: int, width: int, length: int, d_state: int) -> tuple[list[Tensor], dict[str, object]]:
    """The arguments of transformers' scan, strided as a mixer makes them."""
    x, z = (torch.randn(batch, length, width).mT for _ in range(2))
    keys, reads = (torch.randn(batch, length, d_state).mT for _ in range(2))
    tensors = [x, torch.randn(batch, width, length), -torch.rand(width, d_state) * 4, keys, reads]
    options = {"D": torch.randn(width), "z": z, "delta_bias": torch.randn(width), "delta_softplus": True}
    return tensors, {**options, "return_last_state": True}


@pytest.mark.parametrize(("batch", "width", "length"), [(1, 64, 70), (2, 32, 33), (3, 48, 2), (1, 512, 100)])
@pytest.mark.parametrize("block", [2**10, 2**18])
def test_mamba_in_blocks_is_as_near_to_fp64_as_transformers(
    batch: int, width: int, length: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_mamba, "BLOCK", block)
    tensors, options = mamba_inputs(batch, width, length, 16)
    own = inspect.unwrap(modeling_jamba.mamba_selective_scan)(*tensors, **options)
    doubles = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    x, dt, rate, keys, reads = (t.double() for t in tensors)
    step = torch.nn.functional.softplus(dt + doubles["delta_bias"][:, None])
    state, outputs = x.new_zeros(batch, width, 16), []
    for t in range(length):
        state = (rate * step[:, :, t, None]).exp() * state + (step * x)[:, :, t, None] * keys[:, None, :, t]
        outputs.append((state * reads[:, None, :, t]).sum(-1))
    output = torch.stack(outputs, dim=-1) + x * doubles["D"][:, None]
    exact = (output * torch.nn.functional.silu(doubles["z"]), state)
    for scan in (selective_scan_in_blocks, fast_selective_scan):
        for mine, theirs, true in zip(scan(*tensors, **options), own, exact, strict=True):
            assert (mine - true).abs().max() <= max(2 * (theirs - true).abs().max(), 1e-6 * true.abs().max())


@pytest.mark.usefixtures("form")
def test_mamba_goes_on_from_a_state_and_a_reset_forgets_it() -> None:
    tensors, options = mamba_inputs(2, 12, 40, 5)
    initial, resets = torch.randn(2, 12, 5), torch.zeros(2, 40, dtype=torch.bool)
    resets[1, 17] = True
    for some in (None, resets):
        expected = selective_scan(*tensors, resets=some, initial=initial, **options)
        assert_close(fast_selective_scan(*tensors, resets=some, initial=initial, **options), expected)
    forgetting = fast_selective_scan(*tensors, resets=resets, initial=initial, **options)[0][1, :, 17:]
    assert_close(forgetting, fast_selective_scan(*tensors, resets=resets, **options)[0][1, :, 17:])


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", "zamba", "mamba"])
def test_whole_models_run_in_the_form_that_is_chosen(family: str, build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit form is equal to transformers' own bit for bit, the fast one to rounding; each is really called."""
    ids = torch.randint(3, 259, (2, 50))
    scan = "rg_lru" if family == "recurrentgemma" else "mamba"
    names = {"audit": {"rg_lru": "rg_lru_scan", "mamba": "selective_scan"}[scan]}
    names["fast"] = {"rg_lru": "linear_scan", "mamba": "fast_selective_scan"}[scan]
    model = build(family)
    assert model.description["scans"] == "fast"
    calls: dict[str, int] = dict.fromkeys(names, 0)

    def counted(form: str, original):
        def run(*args, **kwargs):
            calls[form] += 1
            return original(*args, **kwargs)

        return run

    for form, name in names.items():
        monkeypatch.setattr(scan_choice, name, counted(form, getattr(scan_choice, name)))
    with torch.no_grad():
        plain = random_module(family)(ids, use_cache=True).logits
        fast = model.trace(ids, trace=False).logits
        assert calls["fast"] >= len(model.recurrent_layers) and not calls["audit"]
        use_scans(model, "audit")
        assert torch.equal(model.trace(ids, trace=False).logits, plain)
        assert calls["audit"] == calls["fast"]
        use_scans(model, "transformers")
        assert torch.equal(model.trace(ids, trace=False).logits, plain)
        assert calls["audit"] == calls["fast"]
    assert model.description["scans"] == "transformers"
    assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("form")
def test_a_scan_keeps_a_nan_and_reads_only_the_past() -> None:
    tensors, options = mamba_inputs(1, 4, 20, 3)
    clean = fast_selective_scan(*tensors, **options)[0]
    tensors[1][0, 2, 10] = torch.nan
    found = fast_selective_scan(*tensors, **options)[0]
    assert found[0, 2, 10:].isnan().all()
    others = torch.ones_like(found, dtype=torch.bool)
    others[0, 2, 10:] = False
    assert torch.equal(found[others], clean[others])


def test_decays_of_any_size_are_those_of_exp() -> None:
    """Far below the range of fp32 a factor is 0 to 1e-37; above it, which no stable scan reaches, it is large."""
    rate = torch.tensor([[-1e-8, -0.5, -1.0, -20.0, -86.0, -88.0, -1000.0, 3.0, -torch.inf]]).mT
    one = torch.ones(1, 1, len(rate))
    _, state = scan_compiled.selective_scan(one[:, :, :1] * 0, one[:, :, :1], rate.mT, one * 0, one, initial=one)
    assert_close(state[0, 0], rate[:, 0].exp(), atol=2e-38, rtol=2e-7)


def test_the_compiled_loops_are_for_plain_tensors_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(1)
    assert compiled_loops.available(one, None, torch.nn.Parameter(one))
    with FakeTensorMode():
        assert not compiled_loops.available(torch.ones(1))
    assert not compiled_loops.available(one, torch.ones(1, device="meta"))
    monkeypatch.setattr(compiled_loops, "numba", None)
    assert not compiled_loops.available(one)


def test_a_model_of_another_is_not_touched_by_a_choice(build) -> None:
    """Two models of one family in two forms, one after the other: the choice is the model's, not the process's."""
    ids = torch.randint(3, 259, (1, 40))
    first, second = build("jamba"), build("jamba")
    use_scans(first, "audit")
    with torch.no_grad():
        plain = random_module("jamba")(ids).logits
        assert torch.equal(first.trace(ids, trace=False).logits, plain)
        assert not torch.equal(second.trace(ids, trace=False).logits, plain)
        assert torch.equal(first.trace(ids, trace=False).logits, plain)


def test_an_unknown_form_is_refused(build) -> None:
    with pytest.raises(ModelError, match=r"scans must be one of 'fast', 'audit', 'transformers', got 'slow'"):
        use_scans(build("jamba"), "slow")


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba"])
@pytest.mark.parametrize("form", ["fast", "audit"])
def test_gradients_flow_through_whole_models_as_without_us(family: str, form, build) -> None:
    model: HybridModel = build(family)
    use_scans(model, form)
    ids = torch.randint(3, 259, (1, 40))
    plain = random_module(family)
    for module in (model, plain):
        run = functools.partial(model.trace, trace=False) if module is model else plain
        run(ids, use_cache=False).logits.square().mean().backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    ours = {name: p.grad for name, p in model.hf_model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("scans", ["fast", "audit", "transformers"])
def test_the_bias_of_the_step_alone_gets_its_gradient(scans, build) -> None:
    """Nothing else wants one: in one call, and going on from a cache that was filled without."""
    model = build("jamba")
    use_scans(model, scans)
    module = model.hf_model.requires_grad_(False)
    bias = module.model.layers[0].mamba.dt_proj.bias.requires_grad_()
    ids, found = torch.arange(3, 43)[None], []
    for start in (0, 20):
        cache = None
        if start:
            with torch.no_grad():
                cache = module(ids[:, :start], use_cache=True).past_key_values
        logits = module(ids[:, start:], past_key_values=cache, use_cache=bool(start)).logits[:, 20 - start :]
        found.append(torch.autograd.grad(logits[:, :20].square().mean(), bias)[0])
    stock = random_module("jamba").requires_grad_(False)
    true = stock.model.layers[0].mamba.dt_proj.bias.requires_grad_()
    stock(ids, use_cache=False).logits[:, 20:40].square().mean().backward()
    assert_close(found[0], true.grad, atol=1e-5, rtol=1e-3)
    assert found[1].abs().sum() > 0


def test_loops_are_compiled_also_where_nothing_can_be_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(function, cache: bool = False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled_loops.numba.core.decorators.njit(function, **options)

    monkeypatch.setattr(compiled_loops.numba, "njit", njit)
    loop = compiled_loops.compiled(lambda x: x + 1)
    assert loop(2) == 3


def test_forward_mode_derivatives_pass_through_the_scan() -> None:
    a, x, _, _ = inputs(1, 5, 20)
    tangents = (torch.ones_like(a), torch.zeros_like(x))
    mine = torch.func.jvp(linear_scan, (a, x), tangents)[1]
    assert_close(
        mine, torch.func.jvp(lambda a, x: by_steps(a, x, None, None), (a, x), tangents)[1], atol=1e-4, rtol=1e-4
    )


def test_no_tokens_are_no_states() -> None:
    assert scan_compiled.linear_scan(torch.ones(2, 0, 3), torch.ones(2, 0, 3)).shape == (2, 0, 3)


def test_compiled_kernels_are_not_given_tensors_of_a_cpu() -> None:
    def reference(x, scale=1, **rest):
        return x * scale

    @functools.wraps(reference)
    def compiled(x, **options):
        raise ValueError("Pointer argument cannot be accessed")

    run = reference_on_cpu(compiled)
    assert run(torch.ones(2), scale=3, unknown=None).tolist() == [3, 3]
    with pytest.raises(ValueError, match="Pointer"):
        run(torch.ones(2, device="meta"), scale=3)


@pytest.mark.parametrize(("rows", "width", "d_state"), [(1, 64, 16), (5, 33, 16), (3, 8, 5), (2, 512, 8)])
def test_one_token_after_a_state_is_as_near_to_fp64_as_transformers(rows: int, width: int, d_state: int) -> None:
    own = inspect.unwrap(modeling_jamba.mamba_selective_state_update)
    x, dt, z, bias, skip = *torch.randn(3, rows, width), *torch.randn(2, width)
    tensors = [x, dt, -torch.rand(width, d_state) * 4, *torch.randn(2, rows, d_state), skip]
    options = {"z": z, "dt_bias": bias, "dt_softplus": True}
    state = torch.randn(rows, width, d_state)
    states = [state.clone(), state.clone(), state.double()]
    theirs = own(states[0], *tensors, **options)
    mine = fast_selective_step(never, states[1], *tensors, **options)
    softplus = torch.nn.functional.softplus(dt.double() + bias.double())
    exact = (tensors[2].double() * softplus[..., None]).exp() * states[2]
    exact += (softplus * x.double())[..., None] * tensors[3].double()[:, None]
    true = (exact * tensors[4].double()[:, None]).sum(-1) + x.double() * skip.double()
    true = true * torch.nn.functional.silu(z.double())
    for got, reference, right in ((mine, theirs, true), (states[1], states[0], exact)):
        assert (got - right).abs().max() <= max(2 * (reference - right).abs().max(), 2e-6 * right.abs().max())


def test_one_token_goes_to_the_original_where_no_loop_is_for_it() -> None:
    """Not in fp32, with gradients, or into a state that is a view: it has to be updated where it is."""
    ones = [torch.ones(1, 2), torch.ones(1, 2), torch.ones(2, 3), torch.ones(1, 3), torch.ones(1, 3)]
    state = torch.zeros(1, 2, 3)
    for given, tensors in (
        (state.bfloat16(), [tensor.bfloat16() for tensor in ones]),
        (state, [ones[0].requires_grad_(), *ones[1:]]),
        (torch.zeros(1, 3, 2).mT, [tensor.detach() for tensor in ones]),
    ):
        original = torch.empty(1, 2)
        assert fast_selective_step(lambda *_, found=original: found, given, *tensors) is original


def never(*_args: object, **_options: object) -> Tensor:
    raise AssertionError("the compiled loop is for this")
