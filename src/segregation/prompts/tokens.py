"""What prompts ask of a tokenizer: which characters each token covers, and which tokens a span of characters takes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from segregation.errors import SampleError
from segregation.prompts.sample import Span


@runtime_checkable
class Tokenizer(Protocol):
    """Any fast tokenizer of transformers (named by its methods, so that prompts need not import it)."""

    @property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """Names of special tokens (``bos_token``, ...) and their texts."""
        ...

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]:
        """Encode a text."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Render a conversation as the model was trained to read it."""
        ...


def token_spans(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[Span]:
    """The characters that each token of a text covers; a special token that stands for no text covers (0, 0).

    Raises:
        SampleError: a tokenizer without character offsets.
    """
    try:
        encoded = tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, truncation=False, verbose=False
        )
    except NotImplementedError as error:
        raise SampleError(
            f"spans are found by character offsets, which {type(tokenizer).__name__} does not give; "
            "load the fast tokenizer (use_fast=True)"
        ) from error
    return [(start, end) for start, end in encoded["offset_mapping"]]


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Tokens of a text by itself, without special tokens."""
    return len(token_spans(tokenizer, text))


def tokens_of(spans: Sequence[Span], part: Span) -> tuple[int, ...]:
    """Which tokens share a character with a part of the text.

    >>> tokens_of([(0, 0), (0, 3), (3, 4), (4, 9)], (3, 6))
    (2, 3)
    """
    start, end = part
    return tuple(index for index, (first, last) in enumerate(spans) if first < end and last > start)
