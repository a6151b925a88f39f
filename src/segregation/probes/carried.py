"""What the recurrent layers carry of a span, as measurements: shares, receptive fields, half-lives and ranks."""

import math
from collections.abc import Iterator, Sequence

from segregation.errors import ModelError
from segregation.interventions.rules import Plan
from segregation.interventions.tables import compile_plans
from segregation.models.hybrid import HybridModel
from segregation.probes.contributions import MAX_BYTES
from segregation.probes.shares import span_shares
from segregation.probes.spectrum import layer_memories
from segregation.prompts.sample import Metadata, Sample
from segregation.runs.generate import checked_spans, described, encode_checked, whole_plan
from segregation.runs.record import Record


def carried(
    model: HybridModel,
    samples: Sequence[Sample],
    src: str = "needle",
    dest: str = "last+new",
    *,
    plan: Plan = Plan(),  # noqa: B008 (a frozen value)
    max_bytes: int = MAX_BYTES,
) -> Iterator[Record]:
    """What the recurrent output at one span has of another, while the target is read; one measurement for each sample.

    Values per recurrent layer, such as ``layer3/by_norm``: the fields of ``Share`` (``by_norm``, ``by_projection``,
    ``even``) and of ``LayerMemory`` (``receptive_field``, ``half_life``, ``long_half_life``, ``rank``, and
    ``matrix_rank`` for Mamba). The sample's target is read after its prompt, as the new tokens.

    Args:
        model: the model; plans it already carries act as well.
        samples: what is read, each in two forwards.
        src: the tokens that contribute, as in ``span_shares``.
        dest: the tokens contributed to, likewise.
        plan: acts on all that is read, by position.
        max_bytes: the most that one layer's contributions may take.

    Raises:
        ModelError: a model without recurrent layers, or too many bytes.
        PlanError: a plan that is impossible on this model.
        SampleError: a sample that is too long, or lacks a span.
    """
    if not model.recurrent_layers:
        raise ModelError("this model has no recurrent layers, so nothing in it is carried by a recurrent state")
    acted = whole_plan(model, plan)
    compile_plans(model, [acted])
    return (_record(model, sample, src, dest, plan, acted, max_bytes) for sample in samples)


def carried_settings(src: str = "needle", dest: str = "last+new") -> Metadata:
    """The settings of these measurements, which tell them from other measurements of the same samples.

    >>> carried_settings("needle", "last")
    {'measure': 'carried', 'src': 'needle', 'dest': 'last'}
    """
    return {"measure": "carried", "src": src, "dest": dest}


def _record(model: HybridModel, sample: Sample, src: str, dest: str, plan: Plan, acted: Plan, max_bytes: int) -> Record:
    new = model.encode_continuation(sample.target)
    prompt = encode_checked(model, sample, len(new))
    checked_spans(model, sample, len(prompt), [acted])
    edited = model.intervene(plan) if plan.rules else model
    values: dict[str, float] = {}
    for share in span_shares(edited, sample, src, dest, new_tokens=new, max_bytes=max_bytes):
        for name in ("by_norm", "by_projection", "even"):
            values[f"layer{share.layer}/{name}"] = getattr(share, name)
    for memory in layer_memories(edited, sample, dest, new_tokens=new, max_bytes=max_bytes):
        for name in ("receptive_field", "half_life", "long_half_life", "rank", "matrix_rank"):
            if not math.isnan(value := getattr(memory, name)):
                values[f"layer{memory.layer}/{name}"] = value
    return Record.of(
        sample,
        kind="measurement",
        plan=acted.to_json(),
        plan_hash=acted.hash,
        prompt_tokens=len(prompt),
        values=values,
        settings=carried_settings(src, dest),
        **described(model, 1),
    )
