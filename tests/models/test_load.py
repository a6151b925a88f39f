import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3_5Config, Qwen3_5ForConditionalGeneration

import segregation
from segregation.errors import FamilyError, ModelError
from segregation.models.family import family_of, layer_types_of
from segregation.models.load import load_model
from segregation.models.provenance import weights_sha256
from segregation.models.source import bundled_models
from tests.conftest import FAMILIES, byte_tokenizer, random_module
from tests.tiny import tiny_config


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
    assert set(known["kernels"].values()) == {"torch"} and known["scans"] == "fast"
    assert (known["device"], known["quantization"], known["unread_tensors"]) == ("cpu", None, [])
    assert known["bos"] == {"bos": 2, "plain": 1, "chat": None, "notes": []}
    assert {check["outcome"] for check in known["self_checks"]} <= {"pass", "not done"}
    assert json.loads(json.dumps(known)) == known
    assert model.can_batch
    assert model.can_fork


def test_dtype_and_attention_are_taken(folder: Path):
    model = load_model(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert (model.dtype, model.description["attn_implementation"]) == (torch.bfloat16, "eager")


def test_auto_is_the_checkpoints_own_dtype(folder: Path, tmp_path: Path):
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="auto")
    assert (model.dtype, model.description["dtype"]) == (torch.bfloat16, "bfloat16")


def test_a_dtype_that_is_none_is_refused(folder: Path):
    with pytest.raises(ModelError, match=r'or "auto" for the checkpoint\'s own, got torch\.int8'):
        load_model(folder, dtype=torch.int8)


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


def test_weights_that_the_model_has_no_place_for_are_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "model")
    respoil(tmp_path / "model", lambda tensors: tensors.update({"model.gate.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"1 that the model has no place for \(such as model\.gate\.weight\)"):
        load_model(tmp_path / "model")


def test_what_a_model_class_does_not_read_is_recorded(tmp_path: Path):
    """A head that predicts several tokens, which published Qwen3-Next checkpoints have."""
    AutoModelForCausalLM.from_config(tiny_config("qwen3_next")).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    respoil(tmp_path, lambda tensors: tensors.update({"mtp.fc.weight": torch.zeros(3)}))
    assert load_model(tmp_path, self_checks=False).description["unread_tensors"] == ["mtp.fc.weight"]


def test_a_checkpoint_with_a_vision_tower_opens_as_its_language_model(tmp_path: Path):
    text = {**tiny_config("qwen3_5").to_dict(), "layer_types": ["linear_attention", "full_attention"] * 2}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    torch.manual_seed(0)
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision)).eval()
    whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, ids = load_model(tmp_path, self_checks=False), torch.arange(20, 30)[None]
    unread = model.description["unread_tensors"]
    assert unread and all(name.startswith("model.visual") for name in unread)
    with torch.no_grad():
        assert torch.equal(model.trace(ids, trace=False).logits, whole(ids).logits)


def test_damaged_weights_and_a_config_of_nothing_known(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="are damaged"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "moebius"}')
    with pytest.raises(FamilyError, match=r"moebius.*Known hybrids: bamba, .*jamba, .*recurrent_gemma"):
        load_model(tmp_path / "model")


def test_no_such_model_lists_the_bundled_ones():
    with pytest.raises(ModelError, match=r"no model 'tiny-gpt': bundled models are .*OWNER/NAME") as caught:
        load_model("tiny-gpt")
    assert all(name in str(caught.value) for name in bundled_models())


def test_a_revision_is_for_hub_models(folder: Path):
    with pytest.raises(ModelError, match=r"revision is for models on the hub, got 'main' with .*, which is a folder"):
        load_model(folder, revision="main")


def test_a_checkpoint_that_is_quantised_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is itself quantised \(quant_method gptq\)"):
        load_model(tmp_path / "model")


def test_a_family_nobody_knows():
    with pytest.raises(FamilyError, match=r"model_type 'gpt2' is not a hybrid .*jamba, .*recurrent_gemma"):
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


@pytest.mark.parametrize(
    ("family", "name", "value", "twin"),
    [
        ("lfm2", "theta", 5e5, r"rope_parameters\.rope_theta=1000000\.0"),
        ("nemotron_h", "attention_head_dim", 128, "head_dim=8"),
        ("mamba2", "d_model", 768, "hidden_size=32"),
    ],
)
def test_another_name_of_a_field_must_say_the_same(family: str, name: str, value: float, twin: str):
    with pytest.raises(FamilyError, match=rf"{name}={value} beside {twin} .*say the same in both"):
        family_of(tiny_config(family, **{name: value}))


def test_fields_of_published_models_are_understood():
    config = tiny_config("lfm2")
    same = config.rope_parameters["rope_theta"]
    assert family_of(tiny_config("lfm2", theta=same, use_pos_enc=True)).name == "lfm2"
    assert family_of(tiny_config("zamba2", gated_linear_unit=True, use_shared_mlp_adapter=True)).name == "zamba2"
    assert family_of(tiny_config("mamba2", ssm_cfg={"layer": "Mamba2"})).name == "mamba2"


@pytest.mark.parametrize(
    ("family", "name", "value", "understood"),
    [
        ("lfm2", "use_pos_enc", False, "True"),
        ("mamba2", "ssm_cfg", {"layer": "Mamba1"}, "None, {}"),
        ("mamba2", "rms_norm", False, "True"),
        ("nemotron_h", "time_step_limit", (0.0, 0.1), r"\(0\.0, inf\)"),
        ("zamba2", "gated_linear_unit", False, "True"),
    ],
)
def test_fields_that_transformers_does_not_read_are_refused_where_they_mean_more(
    family: str, name: str, value: object, understood: str
):
    with pytest.raises(FamilyError, match=rf"{name}=.* is not handled .*understood: {understood}"):
        family_of(tiny_config(family, **{name: value}))


def test_outputs_without_names_are_refused():
    with pytest.raises(FamilyError, match=r"return_dict=False is not handled .*leave it out of config\.json"):
        family_of(tiny_config("jamba", return_dict=False))


def test_public_names():
    assert segregation.load_model is load_model


def test_files_at_odds_with_each_other_have_plain_words(folder: Path, tmp_path: Path):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot be opened \(JSONDecodeError: .*one of its files is damaged"):
        load_model(damaged)
    with pytest.raises(ModelError, match=r'"sdpa", "eager" or "segregation" .*, got .nonsense'):
        load_model(folder, attn_implementation="nonsense")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_a_rows_neighbours_are_refused(kind: str):
    config = tiny_config("llama")
    config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(FamilyError, match=rf"rope_type='{kind}' is not handled.*depend on its neighbours"):
        family_of(config)


def test_windows_of_single_layers_are_refused():
    with pytest.raises(FamilyError, match=r"layer_types names sliding_attention"):
        layer_types_of(tiny_config("qwen3", layer_types=["sliding_attention"] * 3))


def test_a_minimax_of_lightning_layers_alone_is_refused(build):
    with pytest.raises(FamilyError, match=r"minimax without any attention layer is not handled"):
        build("minimax", layer_types=["linear_attention"] * 4)
