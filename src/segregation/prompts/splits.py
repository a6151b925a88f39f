"""The rows of one split of a benchmark: from a folder, the cache of ``datasets``, or the hub."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from segregation.errors import SampleError

if TYPE_CHECKING:
    import datasets

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
"""How each kind of file in a folder is read."""
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_VARIABLES = ("HF_HOME", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")
_PATIENCE = 5.0  # seconds in which the hub must answer


@runtime_checkable
class Rows(Protocol):
    """Rows by their number, read as they are asked for (a train split may have 400,000)."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, position: int, /) -> Mapping[str, Any]:
        """One row: its values by column."""
        ...


def load_split(source: str | Path, config: str, split: str, columns: Sequence[str]) -> Rows:
    """One split of one config, with the columns that are asked for.

    A folder holds a folder per config with a file per split: ``rte/train.jsonl``, or ``.json`` or ``.parquet``, or
    parts of it (``rte/train-00000-of-00002.parquet``), which is also how a download of the hub's repository looks.
    A name on the hub is first looked for in the cache of ``datasets``, without a request: what is there is used.

    Raises:
        SampleError: the split is in none of these places (the message says which), is unreadable, has no rows or
            lacks a column.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        rows = _from_folder(folder, config, split)
    elif isinstance(source, str) and _HUB_NAME.fullmatch(source):
        rows = _from_cache(source, config, split)
        if rows is None:
            rows = _from_hub(source, config, split)
    else:
        raise SampleError(
            f"source is a folder that exists or a name on the hub (owner/name), got {str(source)!r}; {_wanted(config)}"
        )
    if missing := [column for column in columns if column not in rows.column_names]:
        raise SampleError(
            f"{source} ({config}, {split}) must have the columns {list(columns)}; {missing} are missing, it has "
            f"{rows.column_names}. Rename its columns"
        )
    if not len(rows):
        raise SampleError(f"{source} ({config}, {split}) has no rows; give it at least one")
    return rows.select_columns(list(columns))


def cache_folder(source: str, config: str) -> Path:
    """Where ``datasets`` keeps a config of a dataset of the hub once it has been loaded.

    >>> cache_folder("cais/mmlu", "anatomy").parts[-2:]
    ('cais___mmlu', 'anatomy')
    """
    from datasets import config as hub

    return Path(hub.HF_DATASETS_CACHE).expanduser() / "___".join(_cache_names(source)) / config


def _from_folder(folder: Path, config: str, split: str) -> "datasets.Dataset":
    import datasets

    for suffix, reader in READERS.items():
        files = [*folder.glob(f"{config}/{split}{suffix}"), *sorted(folder.glob(f"{config}/{split}-*{suffix}"))]
        if not files:
            continue
        data_files = {split: [str(file) for file in files]}
        try:
            with tempfile.TemporaryDirectory() as scratch:  # a folder needs no cache, whose place may be read-only
                rows = datasets.load_dataset(
                    reader, data_files=data_files, split=split, cache_dir=scratch, keep_in_memory=True
                )
        except Exception as error:  # datasets raises a dozen unrelated classes
            raise SampleError(f"{files[0]} could not be read: {_reason(error)}. {_wanted(config, split)}") from error
        assert isinstance(rows, datasets.Dataset)
        return rows
    here = sorted(file.name for file in folder.glob(f"{config}/*"))
    raise SampleError(
        f"no file of split {split!r} of {config!r} in the folder {str(folder)!r} "
        f"({config}/ holds {here or 'nothing'}); {_wanted(config, split)}"
    )


def _from_cache(source: str, config: str, split: str) -> "datasets.Dataset | None":
    import datasets

    versions = [info.parent for info in cache_folder(source, config).glob("*/*/dataset_info.json")]
    complete = [version for version in versions if version.suffix != ".incomplete"]
    if not complete:
        return None
    newest = max(complete, key=lambda version: version.stat().st_mtime)
    start = f"{_cache_names(source)[-1]}-{split}"
    files = [*newest.glob(f"{start}.arrow"), *sorted(newest.glob(f"{start}-?????-of-?????.arrow"))]
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files]) if files else None


def _from_hub(source: str, config: str, split: str) -> "datasets.Dataset":
    import datasets
    from datasets import config as hub
    from huggingface_hub import HfApi

    try:
        if not hub.HF_HUB_OFFLINE:  # one request; load_dataset repeats its own for half a minute or more
            HfApi(endpoint=hub.HF_ENDPOINT).dataset_info(source, timeout=_PATIENCE)
        rows = datasets.load_dataset(source, config, split=split)
        assert isinstance(rows, datasets.Dataset)
    except Exception as error:  # a dozen unrelated classes here too
        settings = ", ".join(f"{name}={os.environ.get(name, '(not set)')}" for name in _VARIABLES)
        raise SampleError(
            f"the dataset {source!r} (config {config!r}, split {split!r}) could not be loaded: {_reason(error)}. "
            f"Without a network it must be in the cache, in {cache_folder(source, config)} ({settings}): load it once "
            f"on a machine with a network and copy its HF_HOME here, or {_wanted(config, split)}"
        ) from error
    return rows


def _cache_names(source: str) -> list[str]:
    from datasets.naming import camelcase_to_snakecase

    *owner, name = source.split("/")
    return [*owner, camelcase_to_snakecase(name)]


def _wanted(config: str, split: str = "SPLIT") -> str:
    return f"pass source=FOLDER, where FOLDER holds {config}/{split}.parquet, .jsonl or .json"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0].rstrip('.')}"
