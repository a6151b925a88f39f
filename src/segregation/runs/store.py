"""Where records are kept: a run folder that a killed run can go on from, neither repeating nor dropping a record."""

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segregation.errors import RecordError
from segregation.prompts.sample import Metadata, Sample
from segregation.runs.record import Kind, Record, prompt_sha256, record_key

FORMAT = 1
"""Version of the record format, written into every manifest."""

MAY_DIFFER = frozenset({"batch_size", "batching", "command", "started"})
"""Manifest fields that a resumed run may have otherwise, or not yet; the first run's stay in the file."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}")


def run_path(root: Path | str, name: str) -> Path:
    """The folder ``root/name``, with a name that cannot leave ``root``.

    Raises:
        RecordError: a name that is empty, too long, a path, or a link to somewhere else.

    >>> run_path("runs", "ablation-k2").as_posix()
    'runs/ablation-k2'
    """
    if not _NAME.fullmatch(name):
        raise RecordError(
            f"a run's name is 1 to 100 letters, digits or ._+=,- after a first letter or digit, got {name!r:.120}; "
            "choose where runs go with the root folder, not with the name"
        )
    path = Path(root) / name
    if path.resolve().parent != Path(root).resolve():
        raise RecordError(f"run {name!r} is a link that leads out of {str(root)!r}; remove it or choose another name")
    return path


def read_records(path: Path | str) -> list[Record]:
    """The records of a run folder (or of a ``.jsonl`` file), in the order they were written; nothing is changed.

    A last line without its newline is what a killed run leaves: it is skipped with a warning.

    Raises:
        RecordError: no such file, or a line that cannot be read or repeats a key, with file, line number and remedy.
    """
    return _read(_records_file(Path(path)))[0]


def read_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        RecordError: no manifest, or one that is not a JSON object.
    """
    file = Path(path) / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise RecordError(f"{path} is not a run folder: it has no manifest.json") from error
    except ValueError as error:
        raise RecordError(f"{file} is not JSON ({error}); restore it, or start a run under another name") from error
    if not isinstance(manifest, dict):
        raise RecordError(f"{file} must hold a JSON object, got {type(manifest).__name__}")
    return manifest


class RunFolder:
    """A folder with ``manifest.json`` and ``records.jsonl``; one process writes to it at a time.

    Opening an existing folder resumes it: a last line that a killed run left without its newline is dropped with a
    warning, every other record counts as done. A record counts once its newline is on the disk.

    Args:
        path: the folder; made if absent. Use ``run_path`` where its name comes from a user.
        manifest: what the run is (model, versions, dtype, seed, ...), as plain JSON values. On resume it must be the
            manifest of the folder in every field but ``MAY_DIFFER``.

    Raises:
        RecordError: another manifest (the differing fields are named), a path that is a file, a corrupt record line.

    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "demo", {"model": "tiny-jamba", "seed": 0})
    >>> len(folder), read_manifest(folder.path)["model"]
    (0, 'tiny-jamba')
    """

    def __init__(self, path: Path | str, manifest: Mapping[str, Any]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise RecordError(f"a run needs a folder, {self.path} is a file; choose another name")
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = self.path / "records.jsonl"
        self._settle_manifest({"format": FORMAT, **manifest})
        self._prompts: dict[str, str] = {}
        if self._file.exists():
            self._repair()

    @classmethod
    def start(cls, path: Path | str, manifest: Mapping[str, Any]) -> "RunFolder":
        """Open a folder for a new run; a run that ended before its first record gives way to it.

        Raises:
            RecordError: the folder already has records in it.
        """
        records = Path(path) / "records.jsonl"
        if records.exists() and records.stat().st_size:
            raise RecordError(
                f"{path} already holds a run ({records.name}); resume it (--resume), remove it, or choose another name"
            )
        (Path(path) / "manifest.json").unlink(missing_ok=True)
        return cls(path, manifest)

    def __len__(self) -> int:
        return len(self._prompts)

    def __contains__(self, key: object) -> bool:
        return key in self._prompts

    def pending(
        self, samples: Iterable[Sample], *, kind: Kind, plan_hash: str, settings: Metadata | None = None
    ) -> list[Sample]:
        """The samples that have no record yet under this plan and these settings, in their order.

        Raises:
            RecordError: two samples share an id, or a sample's prompt is not the one its record was made from.
        """
        todo: list[Sample] = []
        seen: set[str] = set()
        for sample in samples:
            if sample.id in seen:
                raise RecordError(f"sample ids are unique in a run, got {sample.id!r} twice; give them different ids")
            seen.add(sample.id)
            key = record_key(kind, sample.id, plan_hash, settings or {})
            if key not in self._prompts:
                todo.append(sample)
            elif self._prompts[key] != prompt_sha256(sample.prompt):
                raise RecordError(
                    f"{self._file} has a record {key!r} made from another prompt than the sample has now; "
                    "resume with the samples the run was started with, or start a run under another name"
                )
        return todo

    def append(self, *records: Record) -> None:
        """Write records, one line each, and wait until they are on the disk.

        Raises:
            RecordError: a record whose key is there already.
        """
        keys = [record.key for record in records]
        for position, key in enumerate(keys):
            if key in self._prompts or key in keys[:position]:
                raise RecordError(
                    f"{self._file} already has the record {key!r}; ask pending() which samples are still to run"
                )
        size = self._file.stat().st_size if self._file.exists() else 0
        try:
            with self._file.open("ab") as file:
                file.write("".join(record.to_json() + "\n" for record in records).encode())
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # a full disk or Ctrl-C: leave whole lines only, so that the next append is safe
            if self._file.exists():
                os.truncate(self._file, size)
            raise
        self._prompts.update((record.key, record.prompt_sha256) for record in records)

    def records(self) -> list[Record]:
        """Every record, in the order they were written."""
        return read_records(self.path) if self._file.exists() else []

    def note(self, field: str, value: Any) -> None:
        """Add a field to the manifest that is known only once the run is under way.

        Raises:
            RecordError: the manifest has that field, or the value is no plain JSON.
        """
        manifest = read_manifest(self.path)
        if field in manifest:
            raise RecordError(
                f"{self.path / 'manifest.json'} already says {field}={manifest[field]!r:.100}; read it there"
            )
        self._write_manifest(_as_json({**manifest, field: value}))

    def _settle_manifest(self, manifest: dict[str, Any]) -> None:
        file = self.path / "manifest.json"
        text = _as_json(manifest)
        if not file.exists():
            if self._file.exists() and self._file.stat().st_size:
                raise RecordError(f"{self._file} has records but no manifest.json beside it; restore it or remove both")
            self._write_manifest(text)
            return
        differing = _differences(read_manifest(self.path), json.loads(text))
        if differing:
            raise RecordError(
                f"{self.path} belongs to another run: " + "; ".join(differing) + ". "
                "Resume with the same settings, or start a run under another name"
            )

    def _write_manifest(self, text: str) -> None:
        draft = self.path / "manifest.json.part"
        with draft.open("w", encoding="utf-8") as out:
            out.write(text + "\n")
            out.flush()
            os.fsync(out.fileno())
        draft.replace(self.path / "manifest.json")

    def _repair(self) -> None:
        records, complete = _read(self._file)
        if complete < self._file.stat().st_size:
            with self._file.open("rb+") as file:
                file.truncate(complete)
                os.fsync(file.fileno())
        self._prompts = {record.key: record.prompt_sha256 for record in records}


def _as_json(manifest: Mapping[str, Any]) -> str:
    try:
        return json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(f"a manifest holds plain JSON values only ({error})") from error


def _records_file(path: Path) -> Path:
    file = path if path.suffix == ".jsonl" else path / "records.jsonl"
    if not file.is_file():
        raise RecordError(f"there are no records at {file}; name a run folder, or a .jsonl file of records")
    return file


def _read(file: Path) -> tuple[list[Record], int]:
    """The records of the complete lines, and how many bytes of the file are complete lines."""
    content = file.read_bytes()
    *lines, rest = content.split(b"\n")
    if rest:
        warnings.warn(
            f"{file}, line {len(lines) + 1}: dropped a line without an end ({len(rest)} bytes), left by a run that "
            "was killed while writing; its record will be made again on resume",
            stacklevel=3,
        )
    first_line: dict[str, int] = {}
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = Record.from_json(line.decode())
            if record.key in first_line:
                raise RecordError(f"its key {record.key!r} is already on line {first_line[record.key]}")
        except (RecordError, UnicodeDecodeError) as error:
            raise RecordError(
                f"{file}, line {number} is not a record: {error}. Delete that line (its sample is run again on resume) "
                "or restore the file"
            ) from error
        first_line[record.key] = number
        records.append(record)
    return records, len(content) - len(rest)


def _differences(saved: Any, given: Any, name: str = "") -> list[str]:
    """The fields in which two manifests differ, as "name: the folder has X, this run has Y"."""
    if isinstance(saved, dict) and isinstance(given, dict):
        fields = sorted(set(saved) | set(given))
        if not name:
            fields = [field for field in fields if field not in MAY_DIFFER]
        return [
            line
            for field in fields
            for line in _differences(
                saved.get(field, "nothing"), given.get(field, "nothing"), f"{name}.{field}" if name else field
            )
        ]
    if isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        pairs = enumerate(zip(saved, given, strict=True))
        return [line for number, pair in pairs for line in _differences(*pair, f"{name}[{number}]")]
    return [] if saved == given else [f"{name}: the folder has {saved!r:.100}, this run has {given!r:.100}"]
