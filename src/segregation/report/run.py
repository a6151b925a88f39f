"""A run as a report sees it: manifest, records, outcomes and claims, read from its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segregation.errors import RecordError
from segregation.runs.record import Record
from segregation.runs.store import read_manifest, read_records
from segregation.scores.claims import Claim
from segregation.scores.outcomes import Outcome, outcomes
from segregation.scores.verdicts import decide_run


@dataclass(frozen=True)
class Run:
    """One run on one model.

    Attributes:
        path: its folder.
        manifest: what was run.
        records: what came out, in the order it was written.
        outcomes: the records, scored, in the same order; one for each record that ``has_outcome``.
        claims: what they say about the paper's claims, and those beyond it.
    """

    path: Path
    manifest: dict[str, Any]
    records: Sequence[Record]
    outcomes: Sequence[Outcome]
    claims: Sequence[Claim]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name


def read_run(folder: Path | str) -> Run:
    """Read one run folder and score it.

    Raises:
        RecordError: no manifest, no records, or a record that cannot be read.
    """
    records = read_records(folder)
    scored = outcomes(records)
    return Run(Path(folder), read_manifest(folder), records, scored, decide_run(records, scored))


def read_runs(folder: Path | str) -> list[Run]:
    """The run in a folder, or the runs in the folders right below it, in the order of their names.

    Raises:
        RecordError: there is no run in it.
    """
    root = Path(folder)
    here = [root] if (root / "records.jsonl").is_file() else sorted(p.parent for p in root.glob("*/records.jsonl"))
    if not here:
        raise RecordError(f"{root} holds no run: neither it nor a folder in it has a records.jsonl; name a run folder")
    return [read_run(path) for path in here]
