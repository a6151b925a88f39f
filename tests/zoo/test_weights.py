"""The shipped models: their gates were passed by these very weights, their cards say so, and they do retrieve."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors import safe_open

import segregation as sg
from segregation.prompts.grid import Grid
from segregation.zoo import card, corpus
from segregation.zoo.evaluate import Gate, choice, language, read_gates, retrieval
from segregation.zoo.needles import CLASSIC

WEIGHTS = Path(corpus.__file__).parent / "weights"
NAMES = sorted(folder.name for folder in WEIGHTS.iterdir() if folder.is_dir())


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> sg.HybridModel:
    return sg.load_model(request.param)


def test_both_families_are_shipped() -> None:
    assert NAMES == ["tiny-jamba", "tiny-recurrentgemma"]


@pytest.mark.parametrize("name", NAMES)
def test_the_gates_were_passed_by_these_weights_and_the_card_says_so(name: str) -> None:
    folder = WEIGHTS / name
    figures = json.loads((folder / "gates.json").read_text())
    assert figures["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    gates = read_gates(figures)
    assert len(gates) == 8
    assert all(gate.passed for gate in gates)
    assert all(gate.n >= 200 for gate in gates if gate.name != "language")
    training = json.loads((folder / "training.json").read_text())
    assert (folder / "README.md").read_text() == card.render(training, figures)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_in_bf16(name: str) -> None:
    file = WEIGHTS / name / "model.safetensors"
    assert file.stat().st_size < 16 * 2**20
    with safe_open(file, framework="pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"BF16"}  # noqa: SIM118


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
