"""Recording what attention does while a model generates: patterns, z, kept heads and entropies, on disk."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from segregation.interventions.phase import Phase
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.prompts.spans import sample_spans
from segregation.runs.capture_request import CaptureRequest, check_bytes
from segregation.runs.capture_store import Captured, write_capture
from segregation.runs.fill import missing, open_run
from segregation.runs.generate import checked_rows, generate_rows, listed
from segregation.runs.progress import progress
from segregation.runs.recorder import Recorder

MAX_BYTES = 2**30
"""Bytes that a capture may take when nobody says otherwise."""


def capture(
    model: HybridModel,
    samples: Iterable[Sample],
    plans: Plan | Sequence[Plan] = Plan(),  # noqa: B008 (a frozen value)
    request: CaptureRequest = CaptureRequest(),  # noqa: B008 (a frozen value)
    *,
    folder: Path | str,
    max_new_tokens: int = 40,
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Generate as ``generate`` does and record what attention does meanwhile; the run folder with both.

    Its ``records.jsonl`` holds the records of ``generate``; each has a safetensors file, and a line of ``index.jsonl``
    that says what is in it (``captures`` joins them, ``read_capture`` reads one). A folder that holds a part of this
    capture already gets the rest. Rows are written as their batch is done; until then they are held in memory.

    Tensors of a layer: ``pattern`` (head, dest, src) in fp32, with 0 where a key is out of the window; ``z`` (dest,
    head, d_head) in the model's dtype; ``entropy`` (head, dest) in nats; ``kept`` (dest, head), true where the head
    acts: some of its z is not zero, and the output of its layer's attention is not all zero either. All of them are
    as the plan left them. ``dest`` runs over the positions asked for, ``src`` over those from 0 to the last of them.

    Args:
        model: an untouched model; pass plans as ``plans``.
        samples: what to continue.
        plans: one plan or several.
        request: what to record, where.
        folder: where to write; its manifest holds the request.
        max_new_tokens: tokens after the prompt, at most.
        batch_size: rows (a sample under a plan) decoded together.
        max_bytes: the most that all tensors may take, as ``estimate_bytes`` counts them before anything runs.

    Raises:
        PlanError: a request or plan that is impossible on this model, or one that may take more than ``max_bytes``.
        SampleError: a prompt that does not fit with its new tokens, or lacks a span that a rule names.
        RecordError: the folder holds another run, or the model carries a plan.
    """
    samples, plans = listed(samples, plans)
    checked_rows(model, samples, plans, max_new_tokens)
    check_bytes(model, samples, plans, request, max_new_tokens, max_bytes)
    path = Path(folder)
    run = open_run(path.parent, path.name, model, request, resume=True)
    todo = missing(run, samples, plans, "generate", {"max_new_tokens": max_new_tokens})
    with progress("capture", sum(len(lacking) * len(under) for lacking, under in todo)) as advance:
        for lacking, under in todo:
            recorder = Recorder(model, request, max_new_tokens)
            rows = checked_rows(model, lacking, under, max_new_tokens)
            seen = (recorder.watch, recorder.watch if Phase.PREFILL in request.during else None)
            own = [sample for sample in lacking for _ in under]
            for row, record in generate_rows(model, own, rows, max_new_tokens, batch_size, *seen):
                assert model.tokenizer is not None
                tensors = recorder.take(row, record.tokens)
                captured = Captured.of(
                    record,
                    tensors,
                    heads=recorder.heads,
                    spans=dict(sample_spans(model.tokenizer, own[row.index]).occurrences),
                    new_tokens=tuple(model.tokenizer.decode([token]) for token in record.tokens),
                )
                write_capture(run.path, captured, tensors)
                run.append(record)
                advance()
    return run.path
