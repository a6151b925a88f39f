"""When an intervention acts: phases are sets of token positions, not query lengths.

With a prompt of P tokens (padding not counted), positions 0..P-2 are ``PREFILL``, P-1 is ``LAST`` (the token
that emits the first new token) and P.. are ``DECODE``. Position decides, so a one-token prompt, a chunked
prefill, a forked cache and a teacher-forced pass over prompt plus continuation all mean the same thing.
"""

import enum
from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from segregation.errors import PlanError
from segregation.shapes import Positions, PromptLengths

PHASES = 3
"""``PREFILL``, ``LAST`` and ``DECODE``, numbered 0, 1, 2 where tables are indexed by phase."""

PADDING = 3
"""The number of the phase that padding is in: none."""


class Phase(enum.Flag):
    """A set of phases; combine with ``|``.

    >>> Phase.GENERATION == Phase.LAST | Phase.DECODE
    True
    >>> str(Phase.GENERATION)
    'LAST|DECODE'
    """

    PREFILL = enum.auto()
    LAST = enum.auto()
    DECODE = enum.auto()
    GENERATION = LAST | DECODE
    ALL = PREFILL | LAST | DECODE

    def __str__(self) -> str:
        return "|".join(phase.name or "" for phase in (Phase.PREFILL, Phase.LAST, Phase.DECODE) if phase in self)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of its phases, as ``phase_numbers`` has them.

        >>> Phase.GENERATION.numbers
        (1, 2)
        """
        return tuple(i for i, phase in enumerate((Phase.PREFILL, Phase.LAST, Phase.DECODE)) if phase in self)

    @classmethod
    def parse(cls, text: str) -> "Phase":
        """Read ``str(phase)`` or a name such as ``GENERATION`` back.

        Raises:
            PlanError: a part of the text names no phase.

        >>> Phase.parse("LAST|DECODE") == Phase.GENERATION
        True
        """
        phase = cls(0)
        for name in text.split("|"):
            if name.strip() not in cls.__members__:
                raise PlanError(
                    f"a phase is one of {', '.join(cls.__members__)}, or several joined by '|'; got {text!r}"
                )
            phase |= cls[name.strip()]
        return phase


def phase_numbers(positions: Positions, prompt_lengths: PromptLengths) -> Int[Tensor, "batch pos"]:
    """The phase of every position: 0 ``PREFILL``, 1 ``LAST``, 2 ``DECODE``, 3 padding (a negative position).

    >>> import torch
    >>> phase_numbers(torch.tensor([[-1, 0, 1, 2, 3]]), torch.tensor([3])).tolist()
    [[3, 0, 0, 1, 2]]
    """
    last = prompt_lengths[:, None] - 1
    numbers = (positions >= last).long() + (positions > last).long()
    return numbers.masked_fill(positions < 0, PADDING)


def acting(present: Sequence[int], acts: Sequence[bool]) -> bool:
    """Whether a phase is present (``present`` counts the positions of each) in which something acts."""
    return any(count and acts_here for count, acts_here in zip(present, acts, strict=True))
