"""Samples among the inputs of a run: the model reads their prompts, and rules about tokens name their spans."""

from typing import Any

from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans, sample_spans


def as_text(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs with samples replaced by their prompts, alone or in a list.

    >>> as_text(([Sample("a", "one", "two"), "three"],))
    (['one', 'three'],)
    """

    def text(value: Any) -> Any:
        return value.prompt if isinstance(value, Sample) else value

    return tuple([text(one) for one in value] if isinstance(value, list) else text(value) for value in inputs)


def spans_of(tokenizer: Any, inputs: tuple[Any, ...]) -> list[TokenSpans | None]:
    """The spans of every row, ``None`` for one that is no sample; nothing where none is.

    >>> spans_of(None, ("text",))
    []
    """
    rows = [row for value in inputs for row in (value if isinstance(value, list) else [value])]
    if not any(isinstance(row, Sample) for row in rows):
        return []
    return [sample_spans(tokenizer, row) if isinstance(row, Sample) else None for row in rows]
