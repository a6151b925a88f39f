"""The trainer: its kernels compute what transformers computes, it overfits, resumes, and leaves a folder that opens."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from segregation.errors import ModelError
from segregation.models import scan_triton
from segregation.models.scan_linear import linear_scan
from segregation.zoo import corpus
from segregation.zoo.kernels import use_training_kernels
from segregation.zoo.recipe import RECIPES, recipe
from segregation.zoo.train import optimizer, train, train_step

WEIGHTS = Path(corpus.__file__).parent / "weights"
TOKENIZER = WEIGHTS / "tiny-recurrentgemma" / "tokenizer.json"
MICRO = dataclasses.replace(recipe("micro"), steps=6, batch=2, length=48)


@pytest.mark.parametrize("name", ["micro", "tiny-jamba"])
def test_training_kernels_change_no_logit_and_no_gradient(name: str) -> None:
    model = recipe(name).build()
    ids = torch.randint(5, 4000, (2, 24))
    plain = model(input_ids=ids, use_cache=False).logits
    plain.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    use_training_kernels(model)
    fast = model(input_ids=ids, use_cache=False).logits
    fast.square().mean().backward()
    assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    assert_close([p.grad for p in model.parameters() if p.grad is not None], gradients, atol=1e-5, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_scan_equals_the_loop_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, upstream = (torch.rand(3, 130, 70, device="cuda") for _ in range(3))
    a.requires_grad_(), b.requires_grad_()
    fast = linear_scan(a, b)
    fast_gradients = torch.autograd.grad(fast, (a, b), upstream)
    monkeypatch.setattr(scan_triton, "triton", None)
    slow = linear_scan(a, b)
    assert_close(fast, slow)
    assert_close(fast_gradients, torch.autograd.grad(slow, (a, b), upstream))


def test_micro_overfits_a_handful_of_sequences() -> None:
    micro = dataclasses.replace(recipe("micro"), warmup=10, steps=10_000)
    model = micro.build()
    use_training_kernels(model)
    optim = optimizer(model, micro)
    torch.manual_seed(0)
    ids, weights = torch.randint(5, 4096, (3, 33)), torch.ones(3, 33)
    losses = [train_step(model, optim, micro, step, ids, weights)["loss"].item() for step in range(90)]
    assert losses[0] > 7  # ln 4096 = 8.3
    assert losses[-1] < 0.2


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    options = {"tokenizer": TOKENIZER, "device": "cpu", "workers": 0}
    first = train(dataclasses.replace(MICRO, steps=3), tmp_path, [], seconds=float("inf"), **options)
    assert (first.step, first.tokens) == (3, 3 * 2 * 48)
    second = train(MICRO, tmp_path, [], seconds=float("inf"), **options)
    assert (second.step, second.tokens) == (6, 6 * 2 * 48)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path)("a").input_ids[0] == 1


def test_a_recipe_is_shortened_as_a_whole_to_fit_into_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segregation.zoo.train.WARM_STEPS", 2)
    monkeypatch.setattr("segregation.zoo.train.LOG_EVERY", 1)
    whole = dataclasses.replace(MICRO, steps=100_000, warmup=2)
    options = {"tokenizer": TOKENIZER, "device": "cpu", "workers": 0, "seconds": float("inf")}
    progress = train(whole, tmp_path, [], within=1.5, **options)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert 5 < progress.step == len(rates) < 2000
    assert max(rates) == whole.lr
    assert 0 < rates[-1] < whole.lr / 2  # it fell, and all the way: the step after the last would have had a rate of 0
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    options = {"tokenizer": TOKENIZER, "device": "cpu", "workers": 0, "seconds": float("inf")}
    train(dataclasses.replace(MICRO, steps=1), tmp_path, [], **options)
    with pytest.raises(ModelError, match="seed differs"):
        train(dataclasses.replace(MICRO, seed=7), tmp_path, [], **options)


def test_an_unknown_recipe_is_refused_with_the_list() -> None:
    with pytest.raises(ModelError, match="tiny-jamba"):
        recipe("tiny-mamba")


@pytest.mark.parametrize("name", RECIPES)
def test_the_learning_rate_warms_up_and_falls_to_zero(name: str) -> None:
    chosen = RECIPES[name]
    rates = [chosen.lr_at(step) for step in range(chosen.steps + 1)]
    assert max(rates) == chosen.lr
    assert rates[-1] == 0
    assert rates[0] < chosen.lr / 10
