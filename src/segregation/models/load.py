"""Opening a model by bundled name, folder or hub id, and saying what was opened."""

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segregation.errors import FamilyError, ModelError
from segregation.models.family import families, family_of
from segregation.models.hybrid import HybridModel

WEIGHTS = Path(__file__).parents[1] / "zoo" / "weights"
"""Where the bundled models lie."""

_VERSIONS = ("hybrid-segregation", "torch", "transformers", "nnsight", "safetensors", "mamba-ssm", "causal-conv1d")
_KERNELS = {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"}


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/config.json")))


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device_map: Any = "cpu",
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    self_checks: bool = True,
) -> HybridModel:
    """A hybrid by bundled name, folder, or Hugging Face hub id; weights from safetensors only.

    Args:
        name_or_path: for example ``"tiny-jamba"``, ``"google/recurrentgemma-2b-it"`` or a folder.
        dtype: of the weights in memory.
        device_map: as in transformers: ``"cpu"``, ``"cuda"``, ``"auto"``, or a mapping of modules.
        attn_implementation: ``"sdpa"`` or ``"eager"``; plans work under both.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code from the model's repository; off unless you have read it.
        self_checks: run the quick checks of ``models.checks``; what fails is switched off and recorded.

    Raises:
        ModelError: no such model, a folder without config, weights or tokenizer, weights that are damaged or not all
            there, or a hub that cannot be reached.
        FamilyError: not a hybrid of a known family, or a config field that is not understood.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name, source = str(name_or_path), _source(name_or_path)
    here = Path(source) if Path(source).is_dir() else None
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = _config(name, AutoConfig, source, common)
        family = family_of(config)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
            **common,
        )
    except OSError as error:
        raise ModelError(_unreadable(name, here, error)) from error
    except SafetensorError as error:
        raise ModelError(f"the weights of {name!r} are damaged ({error}); fetch or save them again") from error
    module, loading = loaded
    _check_loading(name, loading)
    model = HybridModel(
        module,
        tokenizer,
        {
            "name": name,
            "revision": getattr(config, "_commit_hash", None) or revision,
            "weights_sha256": weights_sha256(here or _snapshot(source, revision)),
            "dtype": str(dtype).removeprefix("torch."),
            "attn_implementation": module.config._attn_implementation,
            "kernels": kernels(str(module.device.type), family.scan),
            "versions": versions(),
        },
    )
    if self_checks:
        from segregation.models.checks import apply_checks, quick_checks

        apply_checks(model, quick_checks(model))
    return model


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes, those that are installed."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def kernels(device: str, scan: str) -> dict[str, str]:
    """Which implementation the recurrence runs on, per kernel: a compiled package, or PyTorch.

    The compiled Mamba kernels need a CUDA device; transformers picks them up where they are installed. RG-LRU has none.
    On a CPU the scan runs in place (``models.scans``), equal to transformers' own bit for bit.

    >>> kernels("cpu", "rg_lru")
    {'rg_lru': 'torch, scan in place'}
    """
    torch_reference = "torch" if device != "cpu" else "torch, scan in place"
    if scan == "rg_lru":
        return {"rg_lru": torch_reference}
    return {
        package: f"{package} {importlib.metadata.version(package)}"
        if device == "cuda" and importlib.util.find_spec(module) is not None
        else torch_reference
        for module, package in _KERNELS.items()
    }


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of a folder, in the order of their names.

    Files in the hub's cache are links to blobs named by their SHA-256; that digest is taken instead of reading them.
    """
    digests = [_file_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _snapshot(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns=["*.safetensors"]))


def _source(name_or_path: str | Path) -> str:
    """A folder that exists, the folder of a bundled model, or a hub id.

    Raises:
        ModelError: neither of these, or a folder that holds no model.
    """
    name = str(name_or_path)
    folder = WEIGHTS / name if name in bundled_models() else Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name!r} is a folder without config.json; give the folder save_pretrained wrote")
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{name!r} has no weights: no *.safetensors file in it. Only safetensors is read; "
                "convert other formats with save_pretrained, or fetch the missing file"
            )
        if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
            raise ModelError(f"{name!r} has no tokenizer (tokenizer.json or tokenizer.model); save it into the folder")
        return str(folder)
    if isinstance(name_or_path, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(
            f"no model {name!r}: bundled models are {', '.join(bundled_models()) or '(none in this installation)'}; "
            "otherwise give a folder that exists, or a hub id OWNER/NAME"
        )
    return name


def _config(name: str, loader: Any, source: str, common: dict[str, Any]) -> Any:
    """The config, from a class that transformers knows.

    Raises:
        FamilyError: a ``model_type`` that transformers does not know either.
    """
    try:
        return loader.from_pretrained(source, **common)
    except ValueError as error:
        raise FamilyError(
            f"{name!r} is not a model that transformers knows: {str(error).strip().splitlines()[0]} "
            f"Known hybrids: {', '.join(sorted(families()))}"
        ) from error


def _check_loading(name: str, loading: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the model, since transformers would draw the rest at random.

    Raises:
        ModelError: tensors that are missing, or of another shape than the config says.
    """
    found = {
        "missing": sorted(loading["missing_keys"]),
        "of another shape than config.json says": sorted(key for key, *_ in loading["mismatched_keys"]),
    }
    if wrong := [f"{len(keys)} {what} (such as {keys[0]})" for what, keys in found.items() if keys]:
        raise ModelError(
            f"the weights of {name!r} do not fit its config.json: tensors {'; '.join(wrong)}. "
            "Fetch or save the whole model again"
        )


def _unreadable(name: str, here: Path | None, error: OSError) -> str:
    first = str(error).strip().splitlines()[0]
    if here is not None:
        return f"{name!r} cannot be opened: {first}. It needs config.json, *.safetensors and the tokenizer's files"
    return (
        f"{name!r} could not be read from the Hugging Face hub: no connection, no such repository, no access to a "
        f"gated one, or no safetensors in it ({first}). Bundled models need no network: "
        f"{', '.join(bundled_models()) or '(none in this installation)'}; a downloaded model opens by its folder"
    )
