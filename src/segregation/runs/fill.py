"""Filling a run folder with the records it lacks."""

import dataclasses
import json
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from segregation.errors import RecordError
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Metadata, Sample
from segregation.runs.batching import Batching, Mode, measure_batching, of_one_length
from segregation.runs.generate import generate_tasks
from segregation.runs.launch import equal_lengths
from segregation.runs.loglikelihood import loglikelihood_tasks
from segregation.runs.progress import progress
from segregation.runs.record import Kind, Record
from segregation.runs.store import RunFolder, read_manifest, run_path
from segregation.runs.tasks import Group, Task, by_sample

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_NOT_RESULTS = frozenset({"model", "device", "batch_size", "runs", "run", "resume"})
"""Options that the manifest holds elsewhere, or that change no record."""


def open_run(
    root: Path | str, name: str, model: HybridModel, options: "DataclassInstance", *, resume: bool = False
) -> RunFolder:
    """The run folder ``root/name`` with a manifest that says which model, what, by which command and when.

    Args:
        root: where runs go.
        name: the folder's name; it cannot leave ``root``.
        model: described in the manifest; a resumed run must have the same weights, dtype and versions.
        options: a dataclass of the options of the run, written into the manifest but for where it runs and goes.
        resume: go on with a run that is there, instead of refusing to touch it.

    Raises:
        RecordError: the folder holds a run and ``resume`` is off, or that run is another one; or the model carries a
            plan already, which neither manifest nor resumption would know of.
    """
    if model.carried:
        raise RecordError(
            f"a run starts from an untouched model, but this one carries {' + '.join(map(str, model.carried))}; "
            "open the run with the model it was made from, and pass the plan to the filling functions"
        )
    described = {key: value for key, value in model.description.items() if key != "self_checks"}
    chosen = {key: value for key, value in dataclasses.asdict(options).items() if key not in _NOT_RESULTS}
    manifest = {
        "model": described,
        "device": str(model.device),
        "options": json.loads(json.dumps(chosen, default=str)),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = run_path(root, name)
    return RunFolder(path, manifest) if resume else RunFolder.start(path, manifest)


def fill_generate(
    folder: RunFolder,
    model: HybridModel,
    samples: Sequence[Sample],
    plans: Sequence[Plan],
    *,
    max_new_tokens: int = 40,
    batch_size: int | None = None,
    title: str = "generate",
) -> int:
    """Generate for every sample and plan that the folder has no record of; how many records were made.

    Which prompts may share a batch is measured before the first record of the folder (``runs.batching``) and stands in
    its manifest; a resumed run goes by what stands there. Warns of targets with more tokens than ``max_new_tokens``,
    punctuation at their end left out.

    Raises:
        RecordError: the samples are not those the folder's records were made from.
    """
    return _fill_generated(folder, model, [(samples, plans)], max_new_tokens, batch_size, title)


def fill_groups(
    folder: RunFolder,
    model: HybridModel,
    groups: Sequence[Group],
    *,
    max_new_tokens: int = 40,
    batch_size: int | None = None,
    title: str = "generate",
) -> int:
    """Generate for several groups of samples, each under plans of its own; how many records were made.

    A sample that several groups have is read once for all of them. Warns as ``fill_generate`` does.

    Raises:
        RecordError: the samples are not those the folder's records were made from.
    """
    return _fill_generated(folder, model, groups, max_new_tokens, batch_size, title)


def _fill_generated(
    folder: RunFolder,
    model: HybridModel,
    groups: Sequence[Group],
    max_new_tokens: int,
    batch_size: int | None,
    title: str,
) -> int:
    settings = {"max_new_tokens": max_new_tokens}
    todo = [part for samples, plans in groups for part in missing(folder, samples, plans, "generate", settings)]
    _warn_of_cut_targets(model, [sample for samples, _ in todo for sample in samples], max_new_tokens)
    mode = _batching_mode(folder, model, todo)
    size = 1 if mode == "single" else batch_size

    def run(tasks: list[Task]) -> Iterator[Record]:
        if mode != "bucketed":
            yield from generate_tasks(model, tasks, max_new_tokens=max_new_tokens, batch_size=size)
            return
        plans_of = {id(sample): plans for sample, plans in tasks}
        for alike in of_one_length(model, [sample for sample, _ in tasks]):
            own = [(sample, plans_of[id(sample)]) for sample in alike]
            with equal_lengths(model):
                yield from generate_tasks(model, own, max_new_tokens=max_new_tokens, batch_size=size)

    return _fill(folder, by_sample(todo), run, title)


def fill_loglikelihood(
    folder: RunFolder,
    model: HybridModel,
    samples: Sequence[Sample],
    plans: Sequence[Plan],
    *,
    batch_size: int | None = None,
    title: str = "log-likelihood",
) -> int:
    """Score the choices of every sample and plan that the folder has no record of; how many records were made.

    Where batches of different lengths were measured to be wrong, rows go alone: choices differ in length.

    Raises:
        RecordError: the samples are not those the folder's records were made from.
    """
    return fill_scored_groups(folder, model, [(samples, plans)], batch_size=batch_size, title=title)


def fill_scored_groups(
    folder: RunFolder,
    model: HybridModel,
    groups: Sequence[Group],
    *,
    batch_size: int | None = None,
    title: str = "log-likelihood",
) -> int:
    """Score the choices of several groups of samples, each under plans of its own; how many records were made.

    Raises:
        RecordError: the samples are not those the folder's records were made from.
    """
    todo = [part for samples, plans in groups for part in missing(folder, samples, plans, "loglikelihood")]
    size = batch_size if _batching_mode(folder, model, todo) == "batched" else 1

    def run(tasks: list[Task]) -> Iterator[Record]:
        return loglikelihood_tasks(model, tasks, batch_size=size)

    return _fill(folder, by_sample(todo), run, title)


def fill_measurements(
    folder: RunFolder,
    samples: Sequence[Sample],
    measure: Callable[[list[Sample]], Iterator[Record]],
    *,
    plan: Plan = Plan(),  # noqa: B008 (a frozen value)
    settings: Metadata | None = None,
    title: str = "measure",
) -> int:
    """Measure every sample that the folder has no measurement of under this plan and settings; how many were made.

    Args:
        folder: what is filled.
        samples: what is measured; ``measure`` is given those that are lacking.
        measure: gives one record of the kind ``"measurement"`` for each sample, with this plan and these settings.
        plan: what acts on the model meanwhile.
        settings: what tells these measurements from others of the same samples.
        title: shown beside the progress.

    Raises:
        RecordError: the samples are not those the folder's records were made from.
    """
    lacking = folder.pending(samples, kind="measurement", plan_hash=plan.hash, settings=settings)
    return _fill(folder, [(sample, [plan]) for sample in lacking], lambda _: measure(lacking), title)


def missing(
    folder: RunFolder, samples: Sequence[Sample], plans: Sequence[Plan], kind: Kind, settings: Metadata | None = None
) -> list[tuple[list[Sample], list[Plan]]]:
    """What the folder lacks: groups of samples with the plans that lack exactly those, to be run in one call."""
    groups: dict[tuple[str, ...], tuple[list[Sample], list[Plan]]] = {}
    for plan in dict.fromkeys(plans):
        lacking = folder.pending(samples, kind=kind, plan_hash=plan.hash, settings=settings)
        if lacking:
            groups.setdefault(tuple(sample.id for sample in lacking), (lacking, []))[1].append(plan)
    return list(groups.values())


def _batching_mode(folder: RunFolder, model: HybridModel, todo: Sequence[Group]) -> Mode | None:
    """What the manifest says, which is measured if it says nothing yet; ``None`` where nothing is to do."""
    if not todo:
        return None
    if (recorded := read_manifest(folder.path).get("batching")) is not None:
        return Batching.from_dict(recorded).mode
    measured = measure_batching(model, [sample for samples, _ in todo for sample in samples])
    folder.note("batching", measured.to_dict())
    return measured.mode


def _without_end(text: str) -> str:
    """A text without the punctuation and white space at its end."""
    return text.rstrip("".join({char for char in text if unicodedata.category(char)[0] in "PZC"}))


def _warn_of_cut_targets(model: HybridModel, samples: Sequence[Sample], max_new_tokens: int) -> None:
    """Say so where a target has more tokens than will be written, punctuation at its end left out as in scores."""
    targets = dict.fromkeys(sample.target for sample in samples)
    tokens = [len(model.encode_continuation(_without_end(target))) for target in targets]
    if cut := [n for n in tokens if n > max_new_tokens]:
        warnings.warn(
            f"{len(cut)} of {len(tokens)} different targets have up to {max(cut)} tokens, more than max_new_tokens="
            f"{max_new_tokens}, so they are likely to be cut, and exact retrieval counts what is cut as wrong; raise "
            f"max_new_tokens to {max(cut)}, or ask for shorter needles",
            stacklevel=4,  # whoever called the public function
        )


def _fill(folder: RunFolder, tasks: list[Task], run: Callable[[list[Task]], Iterator[Record]], title: str) -> int:
    total = sum(len(plans) for _, plans in tasks)
    if not total:
        return 0
    with progress(title, total) as advance:
        for record in run(tasks):
            folder.append(record)
            advance()
    return total
