"""Tiny random hybrids, every parameter perturbed so that biases and pad embeddings are not zero."""

import tests.type_checks  # noqa: F401, I001 (before the package is imported)
import gc
import random
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from segregation.interventions.phase import Phase
from segregation.models import entropy_blocks
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.shapes import PositionMask, Positions, PromptLengths
from tests.tiny import WINDOW as WINDOW
from tests.tiny import tiny_config

torch.set_num_threads(1)
SHIPPED_FEWEST_KEYS = entropy_blocks.FEWEST_KEYS
entropy_blocks.FEWEST_KEYS = 16
"""So that prompts of tests, which are short, are on both sides of it."""


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of all later garbage collections.

    It stays until the end, and looking through it took a second each time.
    """
    gc.collect()
    gc.freeze()


FAMILIES = ("recurrentgemma", "jamba")
RECURRENT_FAMILIES = (*FAMILIES, "bamba")
"""One of each scan: RG-LRU, Mamba-1, Mamba-2."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with <bos> in front."""
    words = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )


def random_module(family: str, *, seed: int = 0, spread: float = 0.15, **config: object) -> PreTrainedModel:
    """The tiny transformers model of a family, plain and unwrapped; ``tests.tiny`` says how it is made up."""
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(tiny_config(family, **config))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return module.eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def build(tokenizer: PreTrainedTokenizerFast) -> Callable[..., HybridModel]:
    """``build(family, **config)`` wraps a new random model."""

    def wrap(family: str, **options: object) -> HybridModel:
        return HybridModel(random_module(family, **options), tokenizer, {"name": f"random-{family}"})

    return wrap


@pytest.fixture(scope="session", params=FAMILIES)
def model(request: pytest.FixtureRequest, build: Callable[..., HybridModel]) -> HybridModel:
    """One hybrid of each family; a test that leaves it changed has found a bug."""
    return build(request.param)


@pytest.fixture(scope="session", params=RECURRENT_FAMILIES)
def any_scan(request: pytest.FixtureRequest, build: Callable[..., HybridModel]) -> HybridModel:
    """One hybrid of each scan."""
    return build(request.param)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Prompts of 1, 2 and up to 40 tokens (the window is 16), with continuations of 1 to 3 tokens."""
    rng = random.Random(0)

    def text(n: int) -> str:
        return "".join(rng.choice("abcdefgh ijkl") for _ in range(n))

    return [Sample(id=f"{n}", prompt=text(n), target="xyz", choices=("xyz", "y", "zq")) for n in (5, 30, 12, 1, 22, 39)]


def phase_mask(during: Phase, positions: Positions, prompt_lengths: PromptLengths) -> PositionMask:
    """Which positions belong to the phases ``during``; padding has a negative position and belongs to none."""
    last = prompt_lengths[:, None] - 1
    mask = positions != positions
    if Phase.PREFILL in during:
        mask = mask | ((positions >= 0) & (positions < last))
    if Phase.LAST in during:
        mask = mask | (positions == last)
    if Phase.DECODE in during:
        mask = mask | (positions > last)
    return mask
