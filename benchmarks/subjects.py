"""The models and prompts of the comparisons: random weights, and modules on the same tensors that nobody wrapped."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import segregation as sg
from benchmarks.published import PUBLISHED, build, untouched, word_tokenizer
from segregation.errors import SampleError
from segregation.models.hybrid import HybridModel
from segregation.models.scan_choice import Scans, put_scans, use_scans
from segregation.models.source import WEIGHTS
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans, sample_spans

MODELS = ("tiny-recurrentgemma", "tiny-jamba")
"""Bundled models whose configs are used."""

AROUND = 41
"""Tokens that a needle prompt has beside its context."""


@dataclass(frozen=True)
class Subject:
    """One architecture with random weights, in several modules on the same tensors.

    Attributes:
        name: the model whose config it has.
        stock: transformers' module, with its own scans.
        plain: the same with the scans of ``model``; NNsight has never touched it.
        model: this package's model.
        scans: the form in which it scans.
        heads: where its attention is, by module path, in order of layers.
    """

    name: str
    stock: PreTrainedModel
    plain: PreTrainedModel
    model: HybridModel
    scans: Scans
    heads: tuple["Heads", ...]

    def another(self) -> PreTrainedModel:
        """One more module like ``plain``."""
        return _with_scans(self.stock, self.model, self.scans)

    def traced(self) -> TransformersModel:
        """One more module like ``plain`` under NNsight, without this package."""
        return TransformersModel(self.another(), task="text-generation", tokenizer=self.model.tokenizer)


@dataclass(frozen=True)
class Heads:
    """The attention of one layer: its index, its module's path, its output projection's name, and its call's name."""

    layer: int
    attention: str
    out_proj: str
    call: str


@dataclass(frozen=True)
class Prompts:
    """Needle prompts of one length.

    Attributes:
        samples: as this package takes them.
        ids: as everyone else does.
        spans: the token positions of their spans.
    """

    samples: tuple[Sample, ...]
    ids: Int[Tensor, "batch prompt"]
    spans: tuple[TokenSpans, ...]

    @property
    def needle(self) -> Bool[Tensor, "batch prompt"]:
        """Which tokens are the needle's."""
        mask = torch.zeros_like(self.ids, dtype=torch.bool)
        for row, spans in enumerate(self.spans):
            mask[row, list(spans.tokens("needle"))] = True
        return mask


def subject(name: str, scans: Scans = "fast", device: str = "cpu") -> Subject:
    """A model with random weights whose generation never ends early; all its modules share their tensors.

    The config is a bundled model's (in fp32), or one of ``published`` (in bf16).
    """
    if name in PUBLISHED:
        config = PUBLISHED[name].config(**PUBLISHED[name].fields)
        return subject_of(name, build(config, device), word_tokenizer(config), scans)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(WEIGHTS / name)
    stock = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False).to(device)
    stock.generation_config.eos_token_id = None
    return subject_of(name, stock, AutoTokenizer.from_pretrained(WEIGHTS / name), scans)


def subject_of(name: str, stock: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scans: Scans) -> Subject:
    """The modules of a comparison, from transformers' own."""
    model = HybridModel(untouched(stock), tokenizer, {"name": f"random {name}"})
    use_scans(model, scans)
    paths = {module: path for path, module in model.hf_model.named_modules()}
    heads = [
        Heads(layer, paths[model.attention(layer)._module], model.family.out_proj, model.family.attention_call)
        for layer in model.attention_layers
    ]
    return Subject(name, stock, _with_scans(stock, model, scans), model, scans, tuple(heads))


def needle_prompts(subject: Subject, prompt: int, batch: int) -> Prompts:
    """Needle prompts of exactly this many tokens, needles at different depths.

    Raises:
        SampleError: fewer of this length than the batch takes.
    """
    tokenizer: Any = subject.model.tokenizer
    grid = sg.needle_grid(tokenizer, context_lengths=(prompt - AROUND,), depth_percents=range(5, 96))
    samples = [sample for sample in grid if len(subject.model.encode(sample)) == prompt]
    if len(samples) < batch:
        raise SampleError(f"{len(samples)} prompts have {prompt} tokens and {batch} are needed; take another length")
    chosen = tuple(itertools.islice(samples, 0, len(samples), len(samples) // batch))[:batch]
    ids = torch.tensor([subject.model.encode(sample) for sample in chosen], device=subject.stock.device)
    return Prompts(chosen, ids, tuple(sample_spans(tokenizer, sample) for sample in chosen))


def _with_scans(stock: PreTrainedModel, model: HybridModel, scans: Scans) -> PreTrainedModel:
    module = untouched(stock)
    paths = {mixer: path for path, mixer in model.hf_model.named_modules()}
    mixers = [module.get_submodule(paths[model.mixer(layer)._module]) for layer in model.recurrent_layers]
    put_scans(model.family, mixers, scans)
    return module
