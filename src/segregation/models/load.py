"""Opening a model by bundled name, folder or hub id, and saying what was opened."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from segregation.errors import FamilyError, ModelError, SegregationError
from segregation.models import quantization as quantizing
from segregation.models.beginning import beginning
from segregation.models.entropy_attention import use_entropy_attention
from segregation.models.family import families, family_of
from segregation.models.freed_memory import keep_freed_memory
from segregation.models.hybrid import HybridModel
from segregation.models.matmuls import Matmuls, check_matmuls, use_matmuls
from segregation.models.placement import DeviceMap, check_attention, check_device_map, check_dtype, placed_on, runs_on
from segregation.models.provenance import kernels, unread_tensors, versions, weights_sha256
from segregation.models.scan_choice import Scans, check_scans, use_scans
from segregation.models.source import Source, find_source


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device_map: DeviceMap = "cpu",
    quantization: str | None = None,
    attn_implementation: str = "sdpa",
    scans: Scans = "fast",
    matmuls: Matmuls = "fast",
    revision: str | None = None,
    trust_remote_code: bool = False,
    self_checks: bool = True,
) -> HybridModel:
    """A hybrid by bundled name, folder, or Hugging Face hub id; weights from safetensors only.

    For a model on a CPU the process keeps the memory that it frees from then on (``models.freed_memory``).

    Args:
        name_or_path: for example ``"tiny-jamba"``, ``"google/recurrentgemma-2b-it"`` or a folder.
        dtype: of the weights in memory; ``"auto"`` is the checkpoint's own.
        device_map: as in transformers: ``"cpu"``, ``"cuda"``, ``"auto"`` (all GPUs there are), or a mapping of modules.
        quantization: ``"bnb-int8"``, ``"bnb-nf4"``, or ``"torchao-int8"``; what stays in ``dtype``, and why, is
            in ``models.quantization``.
        attn_implementation: ``"sdpa"``, ``"eager"`` or ``"segregation"``, which measures heads as it attends; plans
            work under all.
        scans: the form of RG-LRU's and Mamba-1's scans: ``"fast"``, ``"audit"`` (transformers' own bit for bit on a
            CPU) or ``"transformers"``; ``models.scan_choice`` has what each is.
        matmuls: ``"fast"`` multiplies fp32 matrices on a CPU by the faster of torch's libraries, ``"transformers"`` by
            the one that torch calls itself; ``models.matmuls`` says where they differ.
        revision: branch, tag or commit of a hub model; the description names the commit.
        trust_remote_code: run code from the model's repository; off unless you have read it.
        self_checks: run the quick checks of ``models.checks``; what fails is switched off and recorded.

    Raises:
        ModelError: no such model or form of scans or products, a folder without config, weights or tokenizer, weights
            that are damaged or do not fit the model, a device, dtype, quantisation or attention that cannot be had
            here, or a hub that does not give the model.
        FamilyError: not a hybrid of a known family, or a config field that is not understood.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    use_entropy_attention()
    check_attention(attn_implementation)
    check_dtype(dtype)
    check_device_map(device_map)
    check_matmuls(matmuls)
    check_scans(scans)
    quantizing.check_quantization(quantization, runs_on(device_map))
    source = find_source(name_or_path, revision)
    common = {**source.options(), "trust_remote_code": trust_remote_code}
    try:
        config = _config(source, common)
        family = family_of(config)
        kept = quantizing.kept_modules(config) if quantization else ()
        tokenizer = AutoTokenizer.from_pretrained(source.at, **common)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.at,
            config=config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=None if family.only == "recurrent" else attn_implementation,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
            **quantizing.loading_options(quantization, kept, dtype, config),
            **common,
        )
    except OSError as error:
        raise source.unreadable(error) from error
    except ImportError as error:
        raise ModelError(
            f"{source.name!r} needs a package that is not here: {str(error).strip().splitlines()[0]} Install it, or "
            'leave out what asks for it (attn_implementation is "sdpa", "eager" or "segregation")'
        ) from error
    except SafetensorError as error:
        raise ModelError(f"the weights of {source.name!r} are damaged ({error}); fetch or save them again") from error
    except SegregationError:
        raise
    except Exception as error:  # whatever transformers makes of a damaged file, or of an argument that it does not know
        first = (str(error).strip().splitlines() or ["no more is said"])[0]
        raise ModelError(
            f"{source.name!r} cannot be opened ({type(error).__name__}: {first:.200}): one of its files is damaged or "
            "at odds with the others, or an argument is none that transformers knows"
        ) from error
    module, loading = loaded
    _check_loading(source.name, loading)
    quantizing.keep_to_reference_on_cpu(module)
    if module.device.type == "cpu":
        keep_freed_memory()
    weights = source.weights()
    model = HybridModel(
        module,
        tokenizer,
        {
            "name": source.name,
            "revision": source.commit,
            "weights_sha256": weights_sha256(weights),
            "unread_tensors": unread_tensors(weights, type(module)._keys_to_ignore_on_load_unexpected or ()),
            "dtype": str(module.dtype).removeprefix("torch."),
            "device": placed_on(module),
            "quantization": quantizing.described(quantization, kept, module),
            "attn_implementation": module.config._attn_implementation,
            "bos": asdict(beginning(tokenizer, config, family.name)),
            "matmuls": use_matmuls(module, matmuls),
            "kernels": kernels(str(module.device.type), family.scan),
            "versions": versions(),
        },
    )
    use_scans(model, scans)
    if self_checks:
        from segregation.models.checks import apply_checks, quick_checks

        apply_checks(model, quick_checks(model))
    return model


def _config(source: Source, common: Mapping[str, Any]) -> Any:
    """The config of the language model, from a class that transformers knows.

    Raises:
        FamilyError: a ``model_type`` that transformers does not know either.
        ModelError: a checkpoint that is itself quantised.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.at, **common)
    except ValueError as error:
        raise FamilyError(
            f"{source.name!r} is not a model that transformers knows: {str(error).strip().splitlines()[0]} "
            f"Known hybrids: {', '.join(sorted(families()))}"
        ) from error
    quantizing.check_unquantized(source.name, config)
    return config.get_text_config()


def _check_loading(name: str, loading: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the model, since transformers would draw the rest at random, or that exceed it.

    Raises:
        ModelError: tensors that are missing, of another shape than the config says, or that the model has no place for.
    """
    found = {
        "missing": sorted(loading["missing_keys"]),
        "of another shape than config.json says": sorted(key for key, *_ in loading["mismatched_keys"]),
        "that the model has no place for": sorted(loading["unexpected_keys"]),
    }
    if wrong := [f"{len(keys)} {what} (such as {keys[0]})" for what, keys in found.items() if keys]:
        raise ModelError(
            f"the weights of {name!r} do not fit its config.json: tensors {'; '.join(wrong)}. "
            "Fetch or save the whole model again"
        )
