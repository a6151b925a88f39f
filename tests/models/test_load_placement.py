"""Devices that are there or are not, and quantisation."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from segregation.errors import ModelError
from segregation.models import placement, quantization
from segregation.models.load import load_model
from tests.conftest import byte_tokenizer, random_module
from tests.tiny import CONFIGS, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jamba")
    random_module("jamba").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "device_map", ["auto", "balanced", torch.device("cpu"), {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}]
)
def test_placements_on_a_cpu_give_one_model(folder: Path, device_map: placement.DeviceMap):
    if torch.cuda.is_available() and device_map in placement.SPREAD:
        pytest.skip("spreads over GPUs here")
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        placed, plain = (load_model(folder, device_map=d).trace(ids, trace=False).logits for d in (device_map, "cpu"))
    assert torch.equal(placed, plain)


def test_offloaded_parts_are_refused_before_loading():
    with pytest.raises(ModelError, match=r"part of the model would lie on the disk.*\(conv1d\)"):
        load_model("tiny-jamba", device_map={"model": "cpu", "lm_head": "disk"})
    with pytest.raises(ModelError, match=r"asks for the device meta, which holds no weights"):
        load_model("tiny-jamba", device_map={"model": "meta", "lm_head": "cpu"})


def test_parts_that_auto_left_on_the_cpu_are_refused():
    with pytest.raises(ModelError, match=r"part of the model would lie on the CPU and part on 0"):
        placement.placed_on(SimpleNamespace(hf_device_map={"model": 0, "lm_head": "cpu"}, device=torch.device("cpu")))


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    placement.check_device_map("cuda")
    with pytest.raises(ModelError, match=r"device_map asks for cuda:1, but this machine has 1 CUDA devices"):
        placement.check_device_map("cuda:1")
    with pytest.raises(ModelError, match=r"device_map is a device .*one of auto, .*got 'gpu'"):
        placement.check_device_map("gpu")
    with pytest.raises(ModelError, match=r"device_map asks for the device meta, which holds no weights"):
        load_model("tiny-jamba", device_map="meta")


def test_accelerate_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"needs the package accelerate: pip install accelerate"):
        load_model("tiny-jamba")


def test_quantisations_that_cannot_be_had_are_refused_before_loading(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match=r"None or one of bnb-int8 .*torchao-int8 .*; got 'int4'"):
        load_model("nobody/nothing", quantization="int4")
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None if name == "torchao" else object())
    with pytest.raises(
        ModelError, match=r"needs the package torchao: pip install 'hybrid-segregation\[quantization\]'"
    ):
        load_model("nobody/nothing", quantization="torchao-int8")
    with pytest.raises(ModelError, match=r"run on cpu and cuda, not on mps"):
        quantization.check_quantization("bnb-int8", "mps")


def test_what_stays_in_the_models_dtype():
    ends = {path.split(".")[-1] for path in quantization.kept_modules(tiny_config("jamba"))}
    assert ends == {"lm_head", "dt_proj", "x_proj"}
    assert len(quantization.kept_modules(tiny_config("jamba"))) == 1 + 2 * 2


OVERFLOWING = ("zamba", "zamba2")
"""The shared layers of these have random weights so large that activations do not fit into LLM.int8()'s fp16."""
IDS = torch.arange(20, 50)[None]


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Tensor, tuple]:
    """A family, a folder with a model of it, and its logits and what is switched off as the weights are."""
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(request.param)).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    plain = load_model(path)
    with torch.no_grad():
        logits = plain.trace(IDS, trace=False).logits
    return request.param, path, logits, tuple(plain.description["switched_off"])


@pytest.mark.parametrize("name", quantization.QUANTIZATIONS)
def test_a_quantised_model_passes_its_checks(saved: tuple[str, Path, Tensor, tuple], name: str):
    pytest.importorskip(quantization.QUANTIZATIONS[name].package)
    family, path, logits, switched_off = saved
    if name == "bnb-int8" and family in OVERFLOWING:
        with pytest.raises(ModelError, match=r"fails its self-checks: .* no number"):
            load_model(path, quantization=name)
        return
    model = load_model(path, quantization=name)
    known = model.description["quantization"]
    with torch.no_grad():
        change = (model.trace(IDS, trace=False).logits - logits).abs().max()
    assert known["name"] == name and 0 < known["share"] < 1
    assert change > 0
    assert tuple(model.description["switched_off"]) == switched_off


def test_nothing_to_quantise_is_refused():
    with pytest.raises(ModelError, match=r"found no weights to quantise"):
        quantization.described("bnb-int8", (), torch.nn.Linear(2, 2))
