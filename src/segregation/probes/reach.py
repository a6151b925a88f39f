"""How far back a model can see when no recurrent state carries anything: a number, and a certificate of it.

With the state path cut, h_t = u_t at every token: what a recurrent layer emits depends on the k tokens that its
convolution reads and on nothing else. ``ResetState(every=1)`` does that, since it sets a_p = 0 at every position p > 0,
and before position 0 there is nothing. An attention layer with a window of W keys reads the token itself and W - 1
before it, a convolution of width k the token itself and k - 1 before it. Layers follow each other, so these add up:

    reach = n_attn (W - 1) + n_conv (k - 1)   tokens.

A token further back cannot change the logits by a single bit: whatever it could change is multiplied by zero or is not
read. A token at that distance can be seen, along the one path that takes the longest step in every layer, though what
comes of it may be lost in rounding (as in tiny-recurrentgemma, whose windows are 1152 tokens wide). Should a kernel's
rounding depend on tokens that it does not read, a certificate fails that could hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segregation.errors import ModelError, PlanError
from segregation.interventions.recurrent_rules import ResetState
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.models.scan_inputs import conv_width
from segregation.probes.shares import positions_named
from segregation.prompts.sample import Sample
from segregation.prompts.spans import sample_spans

CUT = Plan(ResetState(every=1))
"""What cuts the state path: every recurrent state is set to zero before every token."""


@dataclass(frozen=True)
class Certificate:
    """Whether the last position of a text sees some of its tokens when no recurrent state carries anything.

    Attributes:
        distance: tokens from the last of the replaced ones to the last position.
        reach: how far back the model sees, in tokens; a distance above it must give a certificate that holds.
        draws: how often the tokens were replaced by other random ones.
        change: the largest change of a logit at the last position over all draws, with the state path cut.
        change_with_state: the same with the state path as it is.
    """

    distance: int
    reach: int
    draws: int
    change: float
    change_with_state: float

    @property
    def holds(self) -> bool:
        """Whether, with the state path cut, every logit stayed the same, bit for bit, in every draw."""
        return self.change == 0


def reach(model: HybridModel) -> int:
    """n_attn (W - 1) + n_conv (k - 1), in tokens: how far back the model sees with its state path cut.

    Raises:
        ModelError: attention without a window, which sees everything.
    """
    if model.attention_layers and model.window is None:
        raise ModelError(
            f"the attention layers {list(model.attention_layers)} have no window, so they see every token and the "
            "reach is unbounded; a certificate can be had of models with windowed attention, or without attention"
        )
    attended = len(model.attention_layers) * ((model.window or 1) - 1)
    return attended + sum(conv_width(model, layer) - 1 for layer in model.recurrent_layers)


def certify_span(
    model: HybridModel, sample: Sample, span: str = "needle", *, seed: int = 0, draws: int = 3
) -> Certificate:
    """Whether the last token of a sample's prompt sees a span with the state path cut: ``certify`` of its tokens.

    Raises:
        SampleError: a span that the sample does not have.
        ModelError: as ``certify``.
        PlanError: as ``certify``.
    """
    assert model.tokenizer is not None
    tokens = model.encode(sample)
    chosen = positions_named(sample_spans(model.tokenizer, sample), span, len(tokens), len(tokens))
    return certify(model, tokens, chosen, seed=seed, draws=draws)


def certify(
    model: HybridModel, tokens: Sequence[int], replaced: Sequence[int], *, seed: int = 0, draws: int = 3
) -> Certificate:
    """Replace tokens by random others, and compare the logits at the last position bit for bit, state path cut and not.

    Args:
        model: the model, untouched.
        tokens: of the whole text, read in one forward.
        replaced: positions whose tokens are replaced, none of them the last.
        seed: draws the tokens.
        draws: how often.

    Raises:
        ModelError: attention without a window, or a text that is too long.
        PlanError: no draw, positions that are not there, or a model that carries something.
    """
    limit, end = reach(model), len(tokens) - 1
    model.check_length(len(tokens), 0)
    if not replaced or min(replaced) < 0 or max(replaced) >= end or draws < 1:
        raise PlanError(
            f"one or more of the positions 0..{end - 1} are replaced, once or more; got {list(replaced)!r:.80} and "
            f"{draws} draws"
        )
    if model.carried:
        raise PlanError(f"a reach is of an untouched model, but this one carries {' + '.join(map(str, model.carried))}")
    own = torch.tensor([list(tokens)], device=model.device)
    at, generator = torch.tensor(sorted(set(replaced)), device=model.device), torch.Generator().manual_seed(seed)
    others = []
    for _ in range(draws):
        shift = torch.randint(1, model.d_vocab, at.shape, generator=generator).to(own.device)
        others.append(own.index_copy(1, at, (own[:, at] + shift) % model.d_vocab))
    changes = []
    for seen in (model.intervene(CUT) if model.recurrent_layers else model, model):
        before = _last_logits(seen, own)
        changes.append(max(float((_last_logits(seen, other) - before).abs().max()) for other in others))
    return Certificate(end - int(at[-1]), limit, draws, *changes)


def _last_logits(model: HybridModel, tokens: Tensor) -> Float[Tensor, " d_vocab"]:
    with torch.no_grad():
        return model.trace(tokens, trace=False, logits_to_keep=1).logits[0, -1]
