"""What ``--model_args`` of lm-eval may say about the model ``segregation``."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from segregation.errors import ModelError
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.models.load import load_model

KNOWN = (
    *("pretrained", "plan", "dtype", "revision", "attn_implementation", "trust_remote_code", "add_bos_token"),
    *("batch_size", "device"),  # lm-eval adds these two from its own flags
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SWITCH = {True: True, False: False}

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """The arguments, read and checked.

    Attributes:
        pretrained: bundled name, folder or hub id.
        plan: what the JSON file of ``plan=`` holds; the empty plan if there is none.
        batch_size: rows run together.
        add_bos_token: whether texts begin with BOS; ``None`` leaves it to the tokenizer.
        settings: for ``load_model``.
    """

    pretrained: str
    plan: Plan
    batch_size: int
    add_bos_token: bool | None
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Arguments":
        """Read arguments by name.

        >>> Arguments.of({"pretrained": "tiny-jamba", "batch_size": "8"}).batch_size
        8

        Raises:
            ModelError: an argument or a value that is not known.
            PlanError: a plan that cannot be read.
        """
        if unknown := sorted(set(given) - set(KNOWN)):
            raise ModelError(f"the model 'segregation' of lm-eval has the arguments {', '.join(KNOWN)}; got {unknown}")
        if not given.get("pretrained"):
            raise ModelError("name a model: --model_args pretrained=NAME (bundled name, folder or hub id)")
        size = given.get("batch_size", 1)
        if not str(size).isdecimal() or int(size) < 1:
            raise ModelError(
                f"batch_size is a number of rows from 1 on, got {size!r}; name one, it is not searched for"
            )
        named = {name: str(given[name]) for name in ("revision", "attn_implementation") if given.get(name)}
        return cls(
            pretrained=str(given["pretrained"]),
            plan=Plan.from_file(str(given["plan"])) if given.get("plan") else Plan(),
            batch_size=int(size),
            add_bos_token=_one_of("add_bos_token", {**SWITCH, None: None}, given.get("add_bos_token")),
            settings={
                "dtype": _one_of("dtype", DTYPES, given.get("dtype", "float32")),
                "device_map": _device(str(given.get("device", "cpu"))),
                "trust_remote_code": _one_of("trust_remote_code", SWITCH, given.get("trust_remote_code", False)),
                **named,
            },
        )

    def load(self) -> HybridModel:
        """The model, its tokenizer set to begin texts as asked.

        Raises:
            ModelError: a model that cannot be loaded.
        """
        model = load_model(self.pretrained, **self.settings)
        if self.add_bos_token is not None:
            tokenizer: Any = model.tokenizer
            tokenizer.add_bos_token = self.add_bos_token  # what from_pretrained(add_bos_token=...) does, as hf calls it
        return model


def _one_of(name: str, known: Mapping[Any, T], value: Any) -> T:
    if value not in known:
        raise ModelError(f"{name} is one of {', '.join(map(str, known))}, got {value!r}")
    return known[value]


def _device(name: str) -> str:
    if name.startswith("cuda") and not torch.cuda.is_available():
        log.warning("No CUDA device here: %r, which is lm-eval's default, becomes 'cpu'.", name)
        return "cpu"
    return name
