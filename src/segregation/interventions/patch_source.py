"""Whose memory a row gets under ``PatchState``, before which position, and whether it fits."""

import json

from segregation.errors import PlanError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import PatchState
from segregation.interventions.sources import read_source
from segregation.models.channels import ATTENTION_CHANNELS
from segregation.prompts.spans import TokenSpans


def patch_before(rule: PatchState, prompt_length: int) -> int:
    """The position before which a row's memory is replaced.

    >>> patch_before(PatchState("memory.safetensors", sha256="0", during=Phase.DECODE), 10)
    10
    """
    return prompt_length - 1 if Phase.LAST in rule.during else prompt_length


def check_patch(rule: PatchState, spans: TokenSpans | None, prompt_length: int) -> str:
    """The sample whose memory a row gets, once there is one that fits.

    Raises:
        PlanError: nothing is remembered yet where the rule acts, or keys or values of another number of tokens.
        SampleError: a row that is no sample, or one that the source has no memory of.
    """
    before = patch_before(rule, prompt_length)
    if before == 0:
        raise PlanError(
            f"{rule} acts before the only token of the prompt, where nothing is remembered; use during=Phase.DECODE"
        )
    if spans is None:
        raise SampleError(f"{rule} goes by sample ids, but the row it should act on is not a Sample; pass a Sample")
    source = read_source(rule)
    lengths: dict[str, int] = json.loads(source.metadata.get("lengths", "{}"))
    if spans.sample_id not in lengths:
        raise SampleError(
            f"{rule}: the source {rule.source!r} has no memory of the sample {spans.sample_id!r}; "
            f"it has {sorted(lengths)!r:.200}"
        )
    there = lengths[spans.sample_id]
    if rule.channel in ATTENTION_CHANNELS and there != before:
        raise PlanError(
            f"{rule}: {rule.channel} take the place of as many, but sample {spans.sample_id!r} has read {before} "
            f"tokens before position {before}, and its memory in {rule.source!r} is of {there}; "
            "store one from a prompt of the same length"
        )
    return spans.sample_id
