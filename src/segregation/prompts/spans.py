"""Which tokens of a prompt the named spans of its sample take."""

from dataclasses import dataclass, field

from segregation.errors import SampleError
from segregation.prompts.sample import Sample
from segregation.prompts.tokens import Tokenizer, token_spans, tokens_of


@dataclass(frozen=True)
class TokenSpans:
    """Token positions of every occurrence of a sample's named spans, counted as the model sees the prompt.

    Attributes:
        sample_id: whose spans they are, for messages; two samples with the same spans compare equal.
        occurrences: per name, the token positions of each occurrence.

    >>> spans = TokenSpans("a", (("needle", ((3, 4), (9, 10))),))
    >>> spans.tokens("needle"), spans.tokens("needle", 1)
    ((3, 4, 9, 10), (9, 10))
    """

    sample_id: str = field(compare=False)
    occurrences: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]

    def tokens(self, name: str, occurrence: int | None = None) -> tuple[int, ...]:
        """Token positions of one occurrence of a span, counted from 0, or of all.

        Raises:
            SampleError: the sample has no such span, or not as many occurrences of it.
        """
        known = dict(self.occurrences)
        if name not in known or not known[name]:
            raise SampleError(
                f"sample {self.sample_id!r} has the spans {sorted(n for n in known if known[n])}, not {name!r}; every "
                'sample has "prompt", "new" and "everything"'
            )
        if occurrence is None:
            return tuple(token for tokens in known[name] for token in tokens)
        if occurrence >= len(known[name]):
            raise SampleError(
                f"sample {self.sample_id!r} has {len(known[name])} occurrence(s) of {name!r}, so the last is number "
                f"{len(known[name]) - 1}; got occurrence {occurrence}"
            )
        return known[name][occurrence]


def sample_spans(tokenizer: Tokenizer, sample: Sample) -> TokenSpans:
    """The tokens of a sample's spans in its prompt, special tokens counted, by character offsets.

    Raises:
        SampleError: a tokenizer without character offsets.
    """
    if not sample.spans:
        return TokenSpans(sample.id, ())
    found = token_spans(tokenizer, sample.prompt, add_special_tokens=True)
    return TokenSpans(
        sample.id,
        tuple((name, tuple(tokens_of(found, part) for part in parts)) for name, parts in sorted(sample.spans.items())),
    )
