"""What a contract is about: a tiny random model of one family, wrapped, beside the same model that never was."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from segregation.interventions.apply import enter
from segregation.interventions.phase import Phase
from segregation.interventions.rules import Plan
from segregation.models.family import Family
from segregation.models.hybrid import HybridModel
from segregation.models.scan_choice import use_scans
from segregation.prompts.sample import Sample
from tests.conftest import byte_tokenizer, phase_mask, random_module
from tests.contract.plain import Plain

PHASES = (Phase.PREFILL, Phase.LAST, Phase.DECODE, Phase.GENERATION, Phase.ALL)
SAMPLE = Sample(
    id="one",
    prompt="ab NEEDLE cd efgh ij",
    target="xyz",
    choices=("xyz", "y"),
    spans={"needle": ((3, 9),), "context": ((0, 12),), "end": ((17, 20),)},
)
"""Longer with its new tokens than RecurrentGemma's window of 16; character c is token c + 1, after <bos>."""
NEW = 5


@dataclass(frozen=True, eq=False)
class Subject:
    """One family's model.

    Attributes:
        model: the wrapped one.
        plain: the same weights in transformers' own module.
    """

    model: HybridModel
    plain: Plain

    @property
    def family(self) -> Family:
        return self.model.family

    @cached_property
    def ids(self) -> Tensor:
        """The sample's prompt."""
        return torch.tensor([self.model.encode(SAMPLE)])

    def inside(self, during: Phase, positions: Tensor) -> Tensor:
        """Which positions of the sample, or after it, are in these phases."""
        return phase_mask(during, positions[None], torch.tensor([self.ids.shape[1]]))[0]


@cache
def subject(family: str, dtype: torch.dtype = torch.float32, **config: Any) -> Subject:
    """The model of a family and its twin; the same every time, since a test that leaves it changed has found a bug.

    Its scans are the ones that equal transformers' own bit for bit. No token ends a row, so that every row is as long
    as was asked for.
    """
    modules: list[Any] = [random_module(family, **config) for _ in range(2)]
    for module in modules:
        module.to(dtype)
        module.generation_config.eos_token_id = None
    model = HybridModel(modules[0], byte_tokenizer(), {"name": f"random-{family}"})
    use_scans(model, "audit")
    names = {module: name for name, module in model.hf_model.named_modules()}

    def twins(layers: tuple[int, ...], part: Callable[[int], Any]) -> dict[int, Any]:
        return {layer: modules[1].get_submodule(names[part(layer)._module]) for layer in layers}

    plain = Plain(
        modules[1],
        attention=twins(model.attention_layers, model.attention),
        out_proj=twins(model.attention_layers, model.out_proj),
        mixer=twins(model.recurrent_layers, model.mixer),
        n_heads=model.n_heads,
        cache_name=model.family.cache,
    )
    return Subject(model, plain)


def unclamped(family: str) -> Subject:
    """The subject with next to no least step dt in its prefill, so that prefill and decoding are one function."""
    field = subject(family).family.clamps_prefill
    return subject(family, **({field: 1e-9} if field else {}))


def generated(subject: Subject, plans: Sequence[Plan]) -> tuple[Tensor, Tensor]:
    """Tokens, prompt included, and the logits of the new ones, of the sample under each plan, in one batch."""
    with torch.no_grad():
        out = enter(subject.model, *plans).generate(
            [SAMPLE] * len(plans),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.sequences, torch.stack(out.logits, 1)


@contextlib.contextmanager
def attending(model: HybridModel, implementation: str) -> Iterator[None]:
    """With another implementation of attention."""
    before = str(model.hf_model.config._attn_implementation)
    model.hf_model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.hf_model.set_attn_implementation(before)
