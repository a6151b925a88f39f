"""What a check of a model is: a question with a limit, what was measured, and what follows if it fails."""

import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segregation.errors import ModelError
from segregation.models.hybrid import HybridModel
from segregation.shapes import Tokens

Logits = Float[Tensor, "batch pos d_vocab"]
Generated = tuple[Int[Tensor, "batch new"], Float[Tensor, "batch new d_vocab"]]
"""New tokens, and the logits they were chosen by."""
Outcome = Literal["pass", "fail", "not done"]
Consequence = Literal["refused", "batching", "fork", "reported"]

CONSEQUENCES: Mapping[Consequence, str] = {
    "refused": "model refused",
    "batching": "batching off",
    "fork": "forking off",
    "reported": "reported",
}
"""What follows if a check fails. Without batching or forking, rows run one at a time; without forking, every row
reads its own prompt as well, and calls that need forks are refused. What is reported stops nothing."""

SHORT, LONG, NEW = 5, 12, 4
"""Tokens of the two prompts of the checks, which fit into any model's window, and new tokens after them."""


@dataclass(frozen=True)
class Check:
    """One check and its outcome.

    Attributes:
        name: what holds where it passes.
        outcome: whether it passed, or that it was not done.
        measured: the largest absolute difference found, in logits or as named; ``None`` where nothing was measured.
        tolerance: the most (for an edit that must act: the least) that it may be.
        consequence: what follows if it fails; a key of ``CONSEQUENCES``.
        note: why it was not done, what stopped it, or what a failure means.
        seconds: how long it took.
    """

    name: str
    outcome: Outcome
    measured: float | None
    tolerance: float
    consequence: Consequence
    note: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it was done and did not pass."""
        return self.outcome == "fail"

    @property
    def said(self) -> str:
        """What was found, in a few words.

        >>> Check("x", "fail", 0.5, 1e-4, "fork").said
        'x measured 5.00e-01, tolerance 1e-04'
        """
        if self.measured is None:
            return f"{self.name} was {self.note}"
        return f"{self.name} measured {self.measured:.2e}, tolerance {self.tolerance:.0e}"


@dataclass(frozen=True)
class Question:
    """A check that can be asked of any model.

    Attributes:
        name: what holds where it passes.
        measure: the number that is measured.
        tolerance: what the number is compared with, a field of ``Tolerances``.
        consequence: what follows if it fails.
        passes: how it is compared.
        lacks: why it cannot be asked of this model; empty where it can.
        known: why a failure is how this model is made, which is then reported and refuses nothing; empty elsewhere.
        meaning: what a failure means, where the name does not say it.
    """

    name: str
    measure: Callable[[HybridModel], float]
    tolerance: Literal["noise", "part", "repeat", "nothing", "some"]
    consequence: Consequence
    passes: Callable[[float, float], bool] = operator.le
    lacks: Callable[[HybridModel], str] = lambda _: ""
    known: Callable[[HybridModel], str] = lambda _: ""
    meaning: str = ""


def ask(model: HybridModel, question: Question, tolerances: "Tolerances") -> Check:
    """The outcome of one question; a model that breaks down under it fails it, and the note says how."""
    tolerance: float = getattr(tolerances, question.tolerance)
    known = question.known(model)
    consequence: Consequence = "reported" if known else question.consequence
    if reason := question.lacks(model):
        return Check(question.name, "not done", None, tolerance, consequence, reason)
    start = time.perf_counter()
    try:
        measured = question.measure(model)
    except Exception as error:  # whatever transformers raises: the model cannot do this, which is what is asked
        first = (str(error).strip().splitlines() or [""])[0]
        note, measured, passed = f"stopped by {type(error).__name__}: {first:.200}", None, False
    else:
        passed = question.passes(measured, tolerance)
        note = "" if passed else "no number (NaN)" if math.isnan(measured) else known or question.meaning
        measured = None if math.isnan(measured) else measured
    finally:
        model.reset()
    seconds = round(time.perf_counter() - start, 3)
    return Check(question.name, "pass" if passed else "fail", measured, tolerance, consequence, note, seconds)


# -- tolerances --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerances:
    """What rounding alone may change, for one model in its dtype on its device.

    Attributes:
        noise: in logits, sums in another order: 1e-4 in fp32 (1e-3 off a CPU, where compiled kernels multiply in TF32:
            up to 3.6e-4 was measured with mamba-ssm's) and 0.25 in 16-bit floats, times the standard deviation of the
            model's own logits where that is above 1.
        part: the same in a part of a layer, relative to its largest number where that is above 1: 1e-5 (1e-3 off a
            CPU) or 0.02.
        repeat: in logits, the same sums in the same order: nothing on a CPU; elsewhere as ``noise``, since the order of
            a sum (experts are added up by atomics) may vary.
        nothing: 0.
        some: the least that counts as a change of the logits, 1e-7.
    """

    noise: float
    part: float
    repeat: float
    nothing: float = 0.0
    some: float = 1e-7

    @classmethod
    def of(cls, model: HybridModel) -> "Tolerances":
        """Those of a loaded model, from one forward pass."""
        on_cpu = model.device is not None and model.device.type == "cpu"
        noise = float_noise(model.dtype, float(logits(model, prompts(model)).std()), model.device)
        part = 2e-2 if model.dtype != torch.float32 else 1e-5 if on_cpu else 1e-3
        return cls(noise, part, 0.0 if on_cpu else noise)


def float_noise(dtype: torch.dtype | None, spread: float, device: torch.device | None) -> float:
    """What sums in another order may change in logits of this standard deviation.

    >>> float_noise(torch.float32, 0.3, torch.device("cpu")), float_noise(torch.bfloat16, 4.0, torch.device("cpu"))
    (0.0001, 1.0)
    """
    on_cpu = device is not None and device.type == "cpu"
    return (0.25 if dtype != torch.float32 else 1e-4 if on_cpu else 1e-3) * max(1.0, spread)


def worst(gaps: Iterable[float]) -> float:
    """The largest of some numbers; one that is no number makes it none, so that no check passes on it.

    >>> worst([0.0, 2.0]), worst([0.0, float("nan")]), worst([])
    (2.0, nan, 0.0)
    """
    return float(torch.tensor([0.0, *gaps]).max())


# -- what cannot be asked ----------------------------------------------------------------------------------------------


def lacks_attention(model: HybridModel) -> str:
    """Why nothing about attention can be asked of a model."""
    return "" if model.attention_layers else "the model has no attention layers"


def lacks_state(model: HybridModel) -> str:
    """Why nothing about recurrent states can be asked of a model."""
    if not model.recurrent_layers:
        return "the model has no recurrent layers"
    return model.family.cannot.get("state", "") or model.family.cannot.get("recurrence", "")


def clamps_prefill(model: HybridModel) -> str:
    """Why reading several tokens and reading one are two functions of a model."""
    field = model.family.clamps_prefill
    if not field:
        return ""
    least = getattr(model.hf_model.config, field)
    return (
        f"generation and log-likelihood are two functions here: {model.family.name} clamps the step dt at "
        f"{field}={least:g} where several tokens are read, and not where one is"
    )


# -- what is run -------------------------------------------------------------------------------------------------------


def prompts(model: HybridModel) -> Tokens:
    """Two rows of fixed pseudo-random tokens that avoid the special ones."""
    generator = torch.Generator().manual_seed(0)
    low = min(8, model.d_vocab - 1)
    return torch.randint(low, model.d_vocab, (2, LONG), generator=generator).to(model.device)


def short_and_long(model: HybridModel) -> tuple[Tokens, Tokens]:
    """The rows with the second one cut to its last ``SHORT`` tokens, and the mask that says so."""
    ids = prompts(model)
    mask = torch.ones_like(ids)
    mask[1, : LONG - SHORT] = 0
    return ids, mask


def logits(model: HybridModel, ids: Tokens, **kwargs: Any) -> Logits:
    """The logits of one forward pass in fp32, whatever the model's dtype."""
    with torch.no_grad():
        return model.trace(ids, trace=False, **kwargs).logits.float()


def generated(model: HybridModel, ids: Tokens, **kwargs: Any) -> Generated:
    """``NEW`` greedy tokens after these, by transformers' own generate, and the logits they were chosen by."""
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    with torch.no_grad():
        out = model.generate(ids, **settings, return_dict_in_generate=True, output_logits=True, **kwargs)
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1).float()


def largest_gap(
    one: Generated,
    other: Generated,
) -> float:
    """The largest difference of two runs' logits, up to the first token in which they differ: later ones read others.

    >>> tokens = torch.tensor([[1, 0, 1]])
    >>> first = torch.zeros(1, 3, 2)
    >>> largest_gap((tokens, first), (torch.tensor([[1, 1, 1]]), first + torch.tensor([0.0, 0.5, 9.0])[:, None]))
    0.5
    """
    same = (one[0] == other[0]).long()
    compared = torch.cat([torch.ones_like(same[:, :1]), same.cumprod(-1)[:, :-1]], dim=-1).bool()
    return float((one[1] - other[1]).abs().amax(-1)[compared].max())


def check_can_fork(model: HybridModel) -> None:
    """Refuse a model whose self-checks found that a fork of it is not the same as reading again.

    Raises:
        ModelError: with the check that failed, and what it measured.
    """
    if model.can_fork:
        return
    checks = [Check(**check) for check in model.description.get("self_checks", ())]
    why = "; ".join(check.said for check in checks if check.failed and check.consequence == "fork")
    raise ModelError(
        f"{model.description.get('name', model.family.name)} cannot be forked: {why or 'its self-checks say so'}. Read "
        "every prompt anew, as generate() and loglikelihood() then do"
    )
