"""Models in folders, and lm-eval's own model ``hf`` of each, to compare with."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from segregation.models.source import WEIGHTS
from tests.conftest import FAMILIES, byte_tokenizer, random_module

logging.getLogger("lm_eval").setLevel(logging.ERROR)


def asked(kind: str, requests: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, arguments, index) for index, arguments in enumerate(requests)]


def save(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    random_module(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each family, and the bundled ones, by name."""
    saved = {name: save(tmp_path_factory.mktemp(name), name, byte_tokenizer()) for name in FAMILIES}
    return {**saved, **{path.name: path for path in WEIGHTS.iterdir() if path.is_dir()}}


def hf_model(folder: Path, batch_size: int = 1, **options: Any) -> HFLM:
    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=batch_size, **options)


@pytest.fixture(scope="session")
def hf(folders: dict[str, Path]) -> Callable[..., HFLM]:
    """``hf(name, batch_size)`` is lm-eval's model of a folder."""

    def load(name: str, batch_size: int = 1, **options: Any) -> HFLM:
        return hf_model(folders[name], batch_size, **options)

    return load
