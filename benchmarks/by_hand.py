"""Three plans written by hand: as PyTorch hooks and attention functions, and as bare NNsight traces.

For prompts of one length without padding, which makes the newest query the only one that ``GENERATION`` is about. They
compute no more than they must: pattern and entropy of the newest query only, whatever the prompt's length.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.subjects import Heads, Prompts, Subject
from segregation.errors import PlanError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, HideTokens, KeepTopHeads, Plan

KEPT = 4
ZERO, KEEP, HIDE = "zero one head", f"keep {KEPT} heads", "hide the needle"

HeadMask = Bool[Tensor, "batch head"]
NewestZ = Float[Tensor, "batch head d_value"]
Result = Any
"""What ``generate`` of transformers returns, as an object with its logits."""


def plans(subject: Subject) -> dict[str, Plan]:
    """The plans as this package has them."""
    return {
        ZERO: Plan(AblateHeads(((subject.heads[0].layer, 0),))),
        KEEP: Plan(KeepTopHeads(KEPT, during=Phase.GENERATION)),
        HIDE: Plan(HideTokens("needle", during=Phase.GENERATION)),
    }


def newest_pattern(
    query: Float[Tensor, "batch head dest d_head"],
    key: Float[Tensor, "batch kv src d_head"],
    scaling: float,
    hidden: Bool[Tensor, "batch src"] | None = None,
) -> Float[Tensor, "batch head src"]:
    """The newest query's attention probabilities over all keys but the hidden ones."""
    newest = query[:, :, -1].unflatten(1, (key.shape[1], -1))
    scores = (newest @ key.mT).flatten(1, 2) * scaling
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
    return scores.softmax(-1)


def top_heads(pattern: Float[Tensor, "batch head src"]) -> HeadMask:
    """The heads of lowest entropy, ``KEPT`` of them; ties go to the lowest index."""
    entropy = -torch.xlogy(pattern, pattern).sum(-1)
    order = entropy.argsort(dim=-1, stable=True)
    return torch.zeros_like(entropy, dtype=torch.bool).scatter_(1, order[:, :KEPT], True)


def mixed(pattern: Float[Tensor, "batch head src"], value: Float[Tensor, "batch kv src d_value"]) -> NewestZ:
    """``pattern @ v`` of the newest query."""
    return (pattern.unflatten(1, (value.shape[1], -1)) @ value).flatten(1, 2)


def check(subject: Subject, prompts: Prompts, new: int) -> None:
    """Refuse prompts that slide out of the window, whose needle would move among the keys.

    Raises:
        PlanError: more tokens than the window.
    """
    window, tokens = subject.model.window, prompts.ids.shape[1] + new
    if window is not None and tokens > window:
        raise PlanError(f"the plans by hand are for at most {window} tokens (the window), got {tokens}")


def with_hooks(module: PreTrainedModel, heads: tuple[Heads, ...], plan: str, prompts: Prompts) -> PreTrainedModel:
    """The module with a plan on it: a pre-hook where that is enough, else an attention function of its own."""
    if plan == ZERO:
        projection = module.get_submodule(heads[0].attention).get_submodule(heads[0].out_proj)
        d_head = int(projection.get_parameter("weight").shape[1]) // module.config.num_attention_heads
        projection.register_forward_pre_hook(functools.partial(_zero_first, d_head))
        return module
    function = functools.partial(_attention, plan, prompts.needle)
    name = f"by hand: {plan}, {tuple(prompts.ids.shape)}"
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
    module.config._attn_implementation = name
    return module


def _zero_first(d_head: int, _module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    z = args[0].clone()
    z[..., :d_head] = 0
    return (z,)


def _attention(
    plan: str,
    needle: Bool[Tensor, "batch prompt"],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output[:, -1] = _newest(plan, needle, query, key, value, scaling, output[:, -1])
    return output, None


def _newest(
    plan: str,
    needle: Bool[Tensor, "batch prompt"],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    z: NewestZ,
) -> NewestZ:
    """The newest query's z under a plan."""
    if plan == KEEP:
        return z * top_heads(newest_pattern(query, key, scaling))[..., None]
    hidden = nn.functional.pad(needle, (0, key.shape[2] - needle.shape[1]))
    return mixed(newest_pattern(query, key, scaling, hidden), value)


def with_nnsight(
    traced: TransformersModel, heads: tuple[Heads, ...], plan: str, prompts: Prompts
) -> Callable[..., Result]:
    """A ``generate`` in a hand-written trace that edits every step."""
    attention = [traced.get(place.attention) for place in heads]
    projections = [module.get(place.out_proj) for module, place in zip(attention, heads, strict=True)]
    call, needle = heads[0].call, prompts.needle
    n_heads = cast(Any, traced._module).config.num_attention_heads
    d_head = projections[0]._module.in_features // n_heads

    def zero_one_head(ids: Tensor, **options: Any) -> Result:
        with traced.generate(**options) as tracer:
            with tracer.invoke(ids):
                for _ in tracer.iter[:]:
                    projections[0].input[..., :d_head] = 0
            with tracer.invoke():
                result = tracer.result.save()
        return result

    def edit_newest(ids: Tensor, **options: Any) -> Result:
        with traced.generate(**options) as tracer:
            with tracer.invoke(ids):
                for _ in tracer.iter[:]:
                    for module, projection in zip(attention, projections, strict=True):
                        args, given = getattr(module.source, call).inputs
                        z = projection.input
                        newest = z[:, -1].unflatten(-1, (n_heads, d_head))
                        edited = _newest(plan, needle, args[1], args[2], args[3], given["scaling"], newest)
                        z[:, -1] = edited.flatten(-2)
            with tracer.invoke():
                result = tracer.result.save()
        return result

    run = zero_one_head if plan == ZERO else edit_newest

    def quietly(ids: Tensor, **options: Any) -> Result:
        with warnings.catch_warnings():  # an open loop over steps ends with a warning by design
            warnings.filterwarnings("ignore", message=r".*was never reached")
            return run(ids, **options)

    return quietly
