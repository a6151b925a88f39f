"""One prompt with its target, the named spans in it, and what is known about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segregation.errors import SampleError

Span = tuple[int, int]
"""Start (inclusive) and end (exclusive), in characters of the prompt."""

Metadata = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Sample:
    """A prompt and the text that counts as right.

    Attributes:
        id: unique among the samples of a run; records are keyed by it.
        prompt: the whole rendered prompt, without the tokenizer's own beginning-of-sequence token.
        target: the continuation that counts as right (for a choice task, the right choice).
        spans: every occurrence of each named part of the prompt, in characters; just-read-twice has two needles.
        choices: continuations to compare by log-likelihood; empty for a generation task.
        metadata: plain values, copied into the records (context_length, depth_percent, ...).

    Raises:
        SampleError: empty id, prompt or target; a span outside the prompt; a target that is not among the choices;
            a choice that is empty or there twice.

    >>> Sample(id="a", prompt="one two", target=" three", spans={"needle": ((4, 7),)}).text_of("needle")
    ('two',)
    """

    id: str
    prompt: str
    target: str
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    metadata: Metadata = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "target"):
            if not getattr(self, name):
                raise SampleError(f"Sample.{name} must not be empty (sample {self.id!r}); give it some text")
        if self.choices and self.target not in self.choices:
            raise SampleError(f"the target must be one of the choices {self.choices}, got {self.target!r}")
        if not all(self.choices) or len(set(self.choices)) < len(self.choices):
            raise SampleError(f"choices must be different and not empty, got {self.choices} (sample {self.id!r})")
        for name, occurrences in self.spans.items():
            for start, end in occurrences:
                if not 0 <= start < end <= len(self.prompt):
                    raise SampleError(
                        f"span {name!r} must lie in the prompt's 0..{len(self.prompt)} characters, got ({start}, {end})"
                    )

    def text_of(self, span: str) -> tuple[str, ...]:
        """The text of every occurrence of a named span.

        Raises:
            SampleError: the sample has no such span.
        """
        if span not in self.spans:
            raise SampleError(f"sample {self.id!r} has the spans {sorted(self.spans)}, not {span!r}")
        return tuple(self.prompt[start:end] for start, end in self.spans[span])


def set_aside(samples: Sequence[Sample], experiment: str) -> list[Sample]:
    """The samples, whose metadata names the one experiment that their outcomes are for; no other claim reads them.

    >>> set_aside([Sample("a", "one", "two")], "routes")[0].metadata
    {'experiment': 'routes'}
    """
    return [replace(sample, metadata={**sample.metadata, "experiment": experiment}) for sample in samples]
