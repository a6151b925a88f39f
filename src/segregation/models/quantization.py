"""Loading weights in 8 or 4 bits: by which package, which weights stay as they are, and how much was quantised."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from segregation.errors import ModelError


@dataclass(frozen=True)
class Quantization:
    """One way of quantising weights while they are loaded.

    Attributes:
        package: which package does it.
        bits: of one weight.
        what: how, in a few words.
    """

    package: str
    bits: int
    what: str


QUANTIZATIONS: Mapping[str, Quantization] = {
    "bnb-int8": Quantization("bitsandbytes", 8, "LLM.int8() without outliers; activations in 8 bits, by way of fp16"),
    "bnb-nf4": Quantization("bitsandbytes", 4, "NF4 in blocks of 64; activations as they are"),
    "torchao-int8": Quantization("torchao", 8, "int8 per output; activations as they are"),
}
"""What ``load_model(quantization=...)`` may be: what passed the checks of ``models.checks`` on a CPU, which every load
asks again. torchao's int4 is not among them: it has no kernel for a CPU."""

DEVICES = ("cpu", "cuda")
"""Types of device that quantised models may be loaded on."""

KEPT: Mapping[str, str] = {
    "lm_head": "logits are read from it",
    "dt_proj": "Mamba-1 multiplies by its weight without calling it",
    "x_proj": "gives the step, B and C of every token in Mamba-1, which later tokens remember; it is small",
    "kv_b_proj": "Kimi-Linear calls it on four dimensions, and LLM.int8() takes three at most",
}
"""Linear modules that stay in the model's dtype, by the end of their name, and why."""


def check_quantization(name: str | None, device: str) -> None:
    """Refuse a quantisation that is unknown, whose package is missing, or that the device cannot run.

    Raises:
        ModelError: one of these, and what to do.

    >>> check_quantization(None, "cpu")
    """
    if name is None:
        return
    if name not in QUANTIZATIONS:
        known = "; ".join(f"{known} ({way.what})" for known, way in QUANTIZATIONS.items())
        raise ModelError(f"quantization is None or one of {known}; got {name!r}")
    package = QUANTIZATIONS[name].package
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"quantization={name!r} needs the package {package}: pip install 'hybrid-segregation[quantization]'"
        )
    if device not in DEVICES:
        raise ModelError(f"quantised models run on {' and '.join(DEVICES)}, not on {device}; leave quantization out")


def check_unquantized(name: str, config: Any) -> None:
    """Refuse a checkpoint that is itself quantised.

    Raises:
        ModelError: a config with a ``quantization_config``.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        raise ModelError(
            f"the checkpoint of {name!r} is itself quantised (quant_method {method!s}), and which of its weights a "
            "mixer reads without calling their module is not known. Load the unquantised one, with quantization= if it "
            "must be small"
        )


def kept_modules(config: Any) -> tuple[str, ...]:
    """Paths of the linear modules of a model that stay in its dtype."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    return tuple(
        path for path, part in module.named_modules() if isinstance(part, nn.Linear) and path.split(".")[-1] in KEPT
    )


def loading_options(
    name: str | None, kept: tuple[str, ...], dtype: torch.dtype | Literal["auto"], config: Any
) -> dict[str, Any]:
    """What transformers is told beside the rest; ``kept`` are the modules to leave alone.

    LLM.int8() runs without outliers (threshold 0): it would pick outlier columns by all the tokens at hand, so that a
    token's numbers would depend on later tokens and on other rows of the batch.

    >>> loading_options(None, (), "auto", None)
    {}
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name is None:
        return {}
    skip = list(kept)
    if name == "bnb-int8":
        way: Any = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=skip)
    elif name == "bnb-nf4":
        compute = dtype if isinstance(dtype, torch.dtype) else config.dtype or torch.float32
        four_bit = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
        way = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip, **four_bit)
    else:
        ways: Any = importlib.import_module("torchao.quantization")
        way = TorchAoConfig(ways.Int8WeightOnlyConfig(), modules_to_not_convert=skip)
    return {"quantization_config": way}


def keep_to_reference_on_cpu(module: nn.Module) -> None:
    """Let bitsandbytes' 4-bit layers multiply by their dequantised weights on a CPU.

    Its packed kernel there takes weights of some sizes only, and reads inputs that are not contiguous, as those of
    Mamba-1's ``out_proj``, as if they were.
    """
    for part in module.modules():
        if type(part).__name__ == "Linear4bit" and next(part.parameters()).device.type == "cpu":
            part.__dict__["support_avx512bf16_for_cpu"] = False


def quantized_share(module: nn.Module) -> float:
    """The share of a model's weights that are quantised, by number; experts stored as one tensor are not.

    >>> quantized_share(nn.Linear(3, 2))
    0.0
    """
    quantized = rest = 0
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if isinstance(part, nn.Linear) and type(parameter).__module__.split(".")[0] in ("bitsandbytes", "torchao"):
                quantized += int(part.in_features) * int(part.out_features)
            else:
                rest += parameter.numel()
    return quantized / max(1, quantized + rest)


def described(name: str | None, kept: tuple[str, ...], module: nn.Module) -> dict[str, Any] | None:
    """What a model's description says of its quantisation.

    Raises:
        ModelError: nothing was quantised.
    """
    if name is None:
        return None
    share = quantized_share(module)
    if share == 0:
        raise ModelError(f"quantization={name!r} found no weights to quantise; load without it")
    package = QUANTIZATIONS[name].package
    return {
        "name": name,
        "package": f"{package} {importlib.metadata.version(package)}",
        "kept": sorted({path.split(".")[-1] for path in kept}),
        "share": round(share, 4),
    }
