"""The shipped models: their gates were passed by these very weights, their cards say so, and they do retrieve."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import segregation as sg
from segregation.models.provenance import weights_sha256
from segregation.prompts.grid import Grid
from segregation.zoo import card, corpus
from segregation.zoo.evaluate import Gate, choice, language, read_gates, retrieval
from segregation.zoo.needles import CLASSIC

WEIGHTS = Path(corpus.__file__).parent / "weights"
HYBRIDS = ("tiny-jamba", "tiny-recurrentgemma")
CONTROLS = tuple(
    f"tiny-{kind}-{family}" for kind in ("attention", "recurrence") for family in ("jamba", "recurrentgemma")
)
NAMES = sorted(folder.name for folder in WEIGHTS.iterdir() if folder.is_dir())


@pytest.fixture(scope="module", params=HYBRIDS)
def model(request: pytest.FixtureRequest) -> sg.HybridModel:
    return sg.load_model(request.param)


def test_both_families_are_shipped_with_their_controls() -> None:
    assert sorted([*HYBRIDS, *CONTROLS]) == NAMES


def test_all_checkpoints_together_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 100e6


@pytest.mark.parametrize("name", NAMES)
def test_the_gates_are_of_these_weights_and_the_card_says_so(name: str) -> None:
    folder = WEIGHTS / name
    figures = json.loads((folder / "gates.json").read_text())
    assert figures["weights_sha256"] == weights_sha256(folder)
    gates = read_gates(figures)
    assert len(gates) == 8
    assert name in CONTROLS or all(gate.passed for gate in gates)
    assert all(gate.n >= 200 for gate in gates if gate.name != "language")
    training = json.loads((folder / "training.json").read_text())
    assert (folder / "README.md").read_text() == card.render(training, figures)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_in_bf16(name: str) -> None:
    files = list((WEIGHTS / name).glob("model*.safetensors"))
    assert files
    for file in files:
        assert file.stat().st_size < 16 * 2**20
        with safe_open(file, framework="pt") as tensors:
            assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_opens_and_has_one_kind_of_mixer(name: str) -> None:
    model = sg.load_model(name)
    assert set(model.layer_types) == {"attention" if "attention" in name else "recurrent"}
    hybrid = json.loads((WEIGHTS / f"tiny-{name.rpartition('-')[2]}" / "training.json").read_text())
    training = json.loads((WEIGHTS / name / "training.json").read_text())
    one_kind = {"block_types", "attn_layer_period", "attn_layer_offset"}
    own, other = ({k: v for k, v in t["recipe"]["config"].items() if k not in one_kind} for t in (training, hybrid))
    assert own == other
    assert (training["recipe"]["seed"], training["workers"]) == (hybrid["recipe"]["seed"], hybrid["workers"])


def test_attention_alone_retrieves_and_recurrence_alone_does_not() -> None:
    for family in ("jamba", "recurrentgemma"):
        grid = Grid((200,), (0, 50, 100), seed=5)
        found = [retrieval(sg.load_model(f"tiny-{kind}-{family}"), kind, grid) for kind in ("attention", "recurrence")]
        assert [gate.measured for gate in found] == [1.0, 0.0]


def test_unseen_and_classic_needles_are_retrieved(model: sg.HybridModel) -> None:
    for needles in ("synthetic", "classic"):
        grid = Grid((200, 400), (0, 50, 100), needles=needles, haystack="python-reference", seed=5)
        assert retrieval(model, needles, grid).measured >= 5 / 6


def test_facts_are_known_and_the_language_is_learned(model: sg.HybridModel) -> None:
    from segregation.prompts.benchmarks import facts

    assert choice(model, "facts", facts(40), 0.95).passed
    assert language(model, 4).passed


def test_a_chat_prompt_is_answered_with_the_needle(model: sg.HybridModel) -> None:
    samples = Grid((150,), (50,), needles="classic", layout="chat").samples(model.tokenizer)
    (record,) = sg.generate(model, samples)
    assert record.text.strip() == CLASSIC.sentence


def test_a_gate_needs_every_length_and_depth() -> None:
    rates = {100: 1.0, 200: 0.9}
    assert not Gate("needle", 0.97, 0.95, 200, by_length=rates).passed
    assert not Gate("needle", 0.97, 0.95, 200, by_depth=rates).passed
    assert Gate("needle", 0.97, 0.95, 200).passed
