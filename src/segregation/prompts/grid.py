"""A needle grid as plain options, for experiments and the command line."""

from dataclasses import dataclass
from pathlib import Path

from segregation.errors import SampleError
from segregation.prompts.haystack import Haystack, dataset, folder, named
from segregation.prompts.needle import PAPER_DEPTHS, Layout, NeedleName, needle_grid
from segregation.prompts.sample import Sample
from segregation.prompts.tokens import Tokenizer

TINY_LENGTHS = (128, 228, 327, 427, 526, 626, 725, 825, 924, 1024)
"""Ten context lengths for the bundled models, in tokens: round(linspace(128, 1024, 10))."""
TINY_LENGTHS_TWICE = (96, 121, 146, 171, 196, 220, 245, 270, 295, 320)
"""Ten for contexts that are read twice, so that the prompt stays within 1,024 tokens: round(linspace(96, 320, 10))."""


@dataclass(frozen=True)
class Grid:
    """Which needle samples to make.

    Attributes:
        lengths: context lengths in tokens.
        depths: needle depths in percent, 0 (start) to 100 (end).
        needles: "classic" (San Francisco) or "synthetic" (another one per sample, never trained on).
        haystack: "synthetic", "python-reference", "folder:PATH" with .txt files, or "dataset:NAME".
        layout: prompt for a "base" or a "chat" model.
        readings: how often the prompt holds the context; 2 is just-read-twice.
        copies: how often the needle stands in the context, spread evenly, the last at the depth.
        n_per_cell: samples per length and depth.
        max_needle_tokens: the longest synthetic needle, so that 40 new tokens (the paper's number) hold it to its end.
        seed: draws haystacks and needles.
    """

    lengths: tuple[int, ...] = TINY_LENGTHS
    depths: tuple[float | int, ...] = PAPER_DEPTHS
    needles: NeedleName = "synthetic"
    haystack: str = "synthetic"
    layout: Layout = "base"
    readings: int = 1
    copies: int = 1
    n_per_cell: int = 1
    max_needle_tokens: int | None = 39
    seed: int = 0

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """The samples of the grid.

        Raises:
            SampleError: a value that ``needle_grid`` or the haystack refuses.
        """
        return needle_grid(
            tokenizer,
            self.lengths,
            self.depths,
            seed=self.seed,
            needles=self.needles,
            haystack=haystack_of(self.haystack),
            layout=self.layout,
            readings=self.readings,
            copies=self.copies,
            n_per_cell=self.n_per_cell,
            max_needle_tokens=self.max_needle_tokens,
        )


def haystack_of(text: str) -> Haystack:
    """The haystack that a text names: a name, ``folder:PATH`` or ``dataset:NAME``.

    Raises:
        SampleError: no such haystack, or one that cannot be read.

    >>> haystack_of("python-reference").name
    'python-reference'
    """
    kind, _, where = text.partition(":")
    match kind, where:
        case "folder", where if where:
            return folder(Path(where))
        case "dataset", where if where:
            return dataset(where)
        case ("synthetic" | "python-reference") as name, "":
            return named(name)
    raise SampleError(f'a haystack is "synthetic", "python-reference", "folder:PATH" or "dataset:NAME", got {text!r}')
