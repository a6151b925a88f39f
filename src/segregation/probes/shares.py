"""How much of a recurrent layer's output at one span of a sample comes from the tokens of another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from nnsight import save
from torch import Tensor

from segregation.errors import ModelError, SampleError
from segregation.models.hybrid import HybridModel
from segregation.models.recurrence import Recurrence, outputs
from segregation.models.scan_inputs import ScanCall, scan_sizes
from segregation.probes.contributions import MAX_BYTES, check_bytes, contribution_norms, norms_bytes
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans, sample_spans
from segregation.runs.states import checked_recurrent_layers

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Where a layer's recurrent output (before the gate, without D x_t) at some destinations comes from.

    Attributes:
        layer: absolute index of the layer.
        by_norm: mean over destinations of sum_{s in span} ||c_ts|| / sum_s ||c_ts||, in 0..1.
        by_projection: mean over destinations of <sum_{s in span} c_ts, y_t> / <y_t, y_t>; shares of spans that part
            all tokens add up to 1, and one below 0 works against the others.
        even: the share that the span would have if all tokens up to a destination contributed alike.
        dests: how many destinations there are.
    """

    layer: int
    by_norm: float
    by_projection: float
    even: float
    dests: int


def span_shares(
    model: HybridModel,
    sample: Sample,
    src: str = "needle",
    dest: str = "last+new",
    *,
    new_tokens: Sequence[int] = (),
    layers: Sequence[int] | Literal["all"] = "all",
    max_bytes: int = MAX_BYTES,
) -> list[Share]:
    """The share of one span of a sample in every layer's recurrent output at another, in one forward pass.

    Args:
        model: the model; what it carries acts.
        sample: prompt and spans.
        src: the tokens that contribute: spans of the sample, ``"prompt"``, ``"last"`` (the last token of the prompt),
            ``"new"`` or ``"everything"``; several joined by ``+``.
        dest: the tokens contributed to, likewise.
        new_tokens: what is read after the prompt, such as ``record.tokens``.
        layers: absolute indices of recurrent layers, or ``"all"``.
        max_bytes: the most that one layer's contributions may take.

    Raises:
        ModelError: no recurrent layer, another layer, or too many bytes.
        SampleError: a span that the sample does not have, or one without a token.
    """
    assert model.tokenizer is not None
    spans, prompt = sample_spans(model.tokenizer, sample), len(model.encode(sample))
    length = prompt + len(new_tokens)
    sources = torch.zeros(length, dtype=torch.bool, device=model.device)
    sources[positions_named(spans, src, prompt, length)] = True
    dests = positions_named(spans, dest, prompt, length)
    check_bytes("the norms", estimate_bytes(model, length, len(dests)), max_bytes, f"{len(dests)} x {length} tokens")
    before = sources.cumsum(0)[dests] / (torch.tensor(dests, device=model.device) + 1)

    def share(layer: int, recurrence: Recurrence) -> Share:
        norms, own = contribution_norms(recurrence, dests, max_bytes=max_bytes), sources.to(recurrence.write.device)
        projection = projection_share(recurrence, own[None])[0, dests]
        by_norm, by_projection = norm_share(norms, own).mean(), projection.mean()
        return Share(layer, float(by_norm), float(by_projection), float(before.mean()), len(dests))

    return list(see_recurrences(model, sample, share, new_tokens=new_tokens, layers=layers).values())


def estimate_bytes(model: HybridModel, tokens: int, dests: int) -> int:
    """The bytes that contributions of so many tokens to so many destinations take in the model's largest layer.

    Raises:
        ModelError: no recurrent layer.
    """
    sizes = [scan_sizes(model, layer) for layer in checked_recurrent_layers(model, "all")]
    return max(norms_bytes(dests, tokens, heads, d_state) for heads, _, d_state in sizes)


def norm_share(norms: Float[Tensor, "batch dest src"], sources: Bool[Tensor, " src"]) -> Float[Tensor, "batch dest"]:
    """sum_{s in sources} ||c_ts|| / sum_s ||c_ts||; 0 where nothing contributes.

    >>> norm_share(torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]), torch.tensor([True, False])).tolist()
    [[0.25, 0.0]]
    """
    return norms[..., sources].sum(-1) / norms.sum(-1).clamp(min=torch.finfo(norms.dtype).tiny)


def projection_share(recurrence: Recurrence, sources: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """<sum_{s in sources} c_ts, y_t> / <y_t, y_t> at every token t; 0 where y_t is 0."""
    whole, part = (outputs(recurrence, writers)[0].flatten(2) for writers in (None, sources))
    return (part * whole).sum(-1) / whole.square().sum(-1).clamp(min=torch.finfo(whole.dtype).tiny)


def see_recurrences(
    model: HybridModel,
    sample: Sample,
    see: Callable[[int, Recurrence], T],
    *,
    new_tokens: Sequence[int] = (),
    layers: Sequence[int] | Literal["all"] = "all",
) -> dict[int, T]:
    """What ``see`` makes of the recurrence of every layer in one forward over a prompt and the tokens after it.

    A layer's tensors are freed before the next one is read.

    Raises:
        ModelError: no recurrent layer, or another layer.
        SampleError: prompt and new tokens do not fit into the model's positions.
    """
    chosen = checked_recurrent_layers(model, layers)
    assert model.tokenizer is not None
    prompt, spans = model.encode(sample), sample_spans(model.tokenizer, sample)
    try:
        model.check_length(len(prompt), len(new_tokens))
    except ModelError as error:
        raise SampleError(f"sample {sample.id!r}: {error}") from error
    ids = torch.tensor([[*prompt, *new_tokens]], device=model.device)
    with torch.no_grad(), model.trace(ids, prompt_lengths=[len(prompt)], spans=[spans]):
        found = save({layer: see(layer, ScanCall.of(model, layer).recurrence()) for layer in chosen})
    model.reset()
    return found


def positions_named(spans: TokenSpans, names: str, prompt: int, length: int) -> list[int]:
    """The positions of spans joined by ``+``, of a prompt of so many tokens in a text of ``length``.

    Raises:
        SampleError: a span that the sample does not have, or no token at all.

    >>> positions_named(TokenSpans("a", (("needle", ((2, 3),)),)), "needle+last+new", prompt=6, length=8)
    [2, 3, 5, 6, 7]
    """
    everywhere = {
        "prompt": range(prompt),
        "last": range(prompt - 1, prompt),
        "new": range(prompt, length),
        "everything": range(length),
    }
    found: set[int] = set()
    for name in names.split("+"):
        found |= set(everywhere[name] if name in everywhere else spans.tokens(name))
    if not found:
        raise SampleError(
            f"sample {spans.sample_id!r}: {names!r} names none of {prompt} tokens of the prompt and {length - prompt} "
            "new ones; give new_tokens, or name a span of the prompt"
        )
    return sorted(found)
