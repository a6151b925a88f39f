import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config

import segregation
from segregation.errors import FamilyError, ModelError
from segregation.models.family import family_of
from segregation.models.load import bundled_models, load_model, weights_sha256
from tests.conftest import FAMILIES, byte_tokenizer, random_module


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    random_module(request.param).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_a_folder_opens_and_says_what_it_is(folder: Path):
    model = load_model(folder)
    known = model.description
    assert known["weights_sha256"] == weights_sha256(folder)
    assert (known["dtype"], known["attn_implementation"], known["switched_off"]) == ("float32", "sdpa", [])
    assert known["versions"]["torch"] == torch.__version__
    assert set(known["kernels"].values()) == {"torch, scan in place"}
    assert all(check["passed"] for check in known["self_checks"])
    assert json.loads(json.dumps(known)) == known
    assert model.can_batch
    assert model.can_fork


def test_dtype_and_attention_are_taken(folder: Path):
    model = load_model(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert (model.dtype, model.description["attn_implementation"]) == (torch.bfloat16, "eager")


def test_a_folder_without_weights_config_or_tokenizer(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights: no \*\.safetensors"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"a folder without config\.json"):
        load_model(tmp_path / "model")


def respoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_do_not_fill_the_model_are_refused(folder: Path, tmp_path: Path):
    """transformers would draw the missing ones at random and go on."""
    shutil.copytree(folder, tmp_path / "model")
    name = next(key for key in load_file(folder / "model.safetensors") if "q_proj" in key)
    respoil(tmp_path / "model", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=rf"tensors 1 missing \(such as {re.escape(name)}\)"):
        load_model(tmp_path / "model")
    respoil(tmp_path / "model", lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ModelError, match=rf"1 of another shape than config\.json says \(such as {re.escape(name)}\)"):
        load_model(tmp_path / "model")


def test_damaged_weights_and_a_config_of_nothing_known(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="are damaged"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "moebius"}')
    with pytest.raises(FamilyError, match=r"moebius.*Known hybrids: bamba, jamba, recurrent_gemma"):
        load_model(tmp_path / "model")


def test_no_such_model_lists_the_bundled_ones():
    with pytest.raises(ModelError, match=r"no model 'tiny-gpt': bundled models are .*OWNER/NAME") as caught:
        load_model("tiny-gpt")
    assert all(name in str(caught.value) for name in bundled_models())


def test_the_hub_cannot_be_reached(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(ModelError, match=r"could not be read from the Hugging Face hub: no connection.*Bundled models"):
        load_model("nobody/nothing")


def test_a_family_nobody_knows():
    with pytest.raises(FamilyError, match=r"model_type 'gpt2' is not a hybrid .*jamba, recurrent_gemma"):
        family_of(GPT2Config())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_field_is_refused_by_name(family: str):
    config = random_module(family).config
    family_of(config)
    config.logit_bias_scale = 2.0
    with pytest.raises(FamilyError, match=rf"logit_bias_scale=2\.0 is not handled by .*families\.{family}"):
        family_of(config)


def test_a_known_field_with_another_meaning_is_refused():
    config = random_module("jamba").config
    config.sliding_window = 4096
    with pytest.raises(FamilyError, match=r"JambaConfig\.sliding_window=4096 is not handled .*understood: None"):
        family_of(config)


def test_public_names():
    assert segregation.load_model is load_model
