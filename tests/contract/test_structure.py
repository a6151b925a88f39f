"""Contract: parts are where they are said to be, nothing unknown is let in, and wrapping changes nothing."""

import functools

import pytest
import torch
from torch import nn

import segregation as sg
from segregation.errors import FamilyError
from segregation.models.family import families, family_of
from segregation.models.hybrid import HybridModel
from tests.conftest import byte_tokenizer, random_module
from tests.contract.conftest import FAMILIES
from tests.contract.subjects import NEW, SAMPLE, Subject
from tests.contract.subjects import subject as subject_of
from tests.tiny import CONFIGS, tiny_config


def test_every_family_has_a_tiny_config():
    assert sorted(CONFIGS) == FAMILIES
    assert {family.name: family.model_type for family in families().values()} == {
        name: config["model_type"] for name, config in CONFIGS.items()
    }


def test_parts_are_those_that_act(subject: Subject):
    """Attention is what calls attention; its projection is the first linear map after that; mixers write the states."""
    model, plain = subject.model, subject.plain
    called: dict[int, list[nn.Module]] = {layer: [] for layer in plain.attention}

    def note(layer: int, module: nn.Module, _args: object) -> None:
        called[layer].append(module)

    handles = [
        part.register_forward_pre_hook(functools.partial(note, layer))
        for layer, attention in plain.attention.items()
        for part in attention.modules()
        if isinstance(part, nn.Linear)
    ]
    attended: list[int] = []
    values: set[int] = set()

    def attend(layer, pattern, dest, src):
        attended.append(layer)
        called[layer].clear()
        return pattern

    try:
        if plain.attention:
            with plain.patterns(attend):
                plain.run(subject.ids)
                values = {plain.out_proj[layer].in_features for layer in attended}
    finally:
        for handle in handles:
            handle.remove()
    assert attended == list(model.attention_layers)
    assert [called[layer][0] for layer in attended] == [plain.out_proj[layer] for layer in attended]
    assert values == ({model.n_heads * model.d_head} if plain.attention else set())
    assert_states_are_written_by_mixers(subject)
    both = set(model.attention_layers) & set(model.recurrent_layers)
    neither = set(range(model.n_layers)) - set(model.attention_layers) - set(model.recurrent_layers)
    for layer, kind in enumerate(model.layer_types):
        assert kind == (
            "hybrid"
            if layer in both
            else "mlp"
            if layer in neither
            else "attention"
            if layer in model.attention_layers
            else "recurrent"
        )


def assert_states_are_written_by_mixers(subject: Subject) -> None:
    """Before a mixer runs its layer remembers what it did; after it, something else; and no other layer does."""
    plain = subject.plain
    plain.run(subject.ids)
    written: list[int] = []

    def states() -> dict:
        return {where: state for where, state in plain.memory().items() if where[1] in ("recurrent", "conv")}

    def before(layer: int):
        return lambda *_: seen.update(states())

    def after(layer: int):
        def compare(*_):
            changed = {at for (at, channel), state in states().items() if not torch.equal(state, seen[at, channel])}
            assert changed == {layer}
            written.append(layer)

        return compare

    seen: dict = {}
    handles = [
        handle
        for layer, mixer in plain.mixer.items()
        for handle in (mixer.register_forward_pre_hook(before(layer)), mixer.register_forward_hook(after(layer)))
    ]
    try:
        plain.read(subject.ids[:, :1])
    finally:
        for handle in handles:
            handle.remove()
    assert written == list(subject.model.recurrent_layers)
    assert {layer for layer, _ in states()} == set(written)


def test_what_is_not_understood_is_refused_by_name(subject: Subject, family: str):
    config = tiny_config(family, wobble=3)
    with pytest.raises(FamilyError, match=rf"wobble=3 is not handled by segregation\.models\.families\.{family}"):
        family_of(config)
    for name, allowed in subject.family.required.items():
        changed, first = tiny_config(family), allowed[0]
        setattr(changed, name, not first if isinstance(first, bool) else 7 if first is None else (0.1, 7.0))
        with pytest.raises(FamilyError, match=rf"{name}=.* is not handled .*understood: "):
            family_of(changed)
    assert family_of(tiny_config(family)) is subject.family


def test_doing_nothing_changes_nothing(subject: Subject):
    """Bit for bit, in one forward and in generation."""
    model, plain = subject.model, subject.plain
    expected = plain.run(subject.ids)
    plans = [sg.Plan()]
    if model.attention_layers:
        plans += [sg.Plan(sg.KeepTopHeads(k=model.n_heads, score=score)) for score in ("entropy", "l2")]
    for plan in plans:
        edited = model.intervene(plan)
        with torch.no_grad():
            assert torch.equal(edited.trace(SAMPLE, trace=False).logits, expected)
            out = edited.generate(
                SAMPLE, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        n = subject.ids.shape[1]
        forced = plain.decode(out.sequences[:, :-1], n)
        assert torch.equal(torch.stack(out.logits, 1), forced)
        assert torch.equal(forced.argmax(-1), out.sequences[:, n:])


@pytest.mark.parametrize("name", ["jamba", "recurrentgemma", "minimax", "kimi_linear", "nemotron_h"])
def test_a_module_that_is_not_what_it_is_called_is_found_out(name: str, monkeypatch):
    """A config's layer types are not believed, nor are names: all of these but Jamba call both kinds the same."""
    swap = {"attention": "recurrent", "recurrent": "attention"}
    swapped = tuple(swap.get(kind, kind) for kind in subject_of(name).model.layer_types)
    monkeypatch.setattr("segregation.models.hybrid.layer_types_of", lambda _config: swapped)
    with pytest.raises((FamilyError, AttributeError)):
        HybridModel(random_module(name), byte_tokenizer())
