"""How a choice question and the solved ones before it become a sample, in the base and in the chat layout."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from segregation.errors import SampleError
from segregation.prompts.needle import Layout
from segregation.prompts.render import as_user_turn
from segregation.prompts.sample import Metadata, Sample
from segregation.prompts.tokens import Tokenizer


@dataclass(frozen=True)
class Question:
    """A question with the answers to choose from.

    Attributes:
        text: all that is asked, without a space at its end.
        choices: the answers, without a space before them.
        answer: which of them is right, from 0.

    Raises:
        SampleError: ``answer`` is no number of a choice (benchmarks mark a hidden label by -1).

    >>> Question("2 + 2?\\nAnswer:", ("3", "4"), 1).solved
    '2 + 2?\\nAnswer: 4'
    """

    text: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if self.answer not in range(len(self.choices)):
            raise SampleError(
                f"the label of a question is in 0..{len(self.choices) - 1}, got {self.answer!r} ({self.text[:60]!r}); "
                "use a split whose labels are public"
            )

    @property
    def solved(self) -> str:
        """The question with its right answer, one space between them."""
        return f"{self.text} {self.choices[self.answer]}"


def choice_sample(
    tokenizer: Tokenizer,
    question: Question,
    *,
    id: str,
    metadata: Metadata,
    layout: Layout = "base",
    header: str = "",
    shots: Sequence[Question] = (),
) -> Sample:
    """The header, the solved questions and the question, with blank lines between; its choices to be scored.

    Prompt and choice are tokenised apart, so a base prompt ends without a space and its choices begin with one. In the
    chat layout all of it is one user turn, and a choice, which opens the answer, begins without a space.

    Raises:
        SampleError: a layout that does not exist, or a tokenizer without a chat template for ``layout="chat"``.

    >>> from segregation.models.load import load_model
    >>> question = Question("2 + 2?\\nAnswer:", ("3", "4"), 1)
    >>> sample = choice_sample(load_model("tiny-jamba").tokenizer, question, id="sum", metadata={}, shots=[question])
    >>> sample.prompt, sample.choices
    ('2 + 2?\\nAnswer: 4\\n\\n2 + 2?\\nAnswer:', (' 3', ' 4'))
    """
    if layout not in get_args(Layout):
        raise SampleError(f"layout is one of {get_args(Layout)}, got {layout!r}")
    text = header + "".join(f"{shot.solved}\n\n" for shot in shots) + question.text
    chat = layout == "chat"
    choices = tuple(choice if chat else f" {choice}" for choice in question.choices)
    return Sample(
        id=f"{id}/{layout}/{len(shots)}-shot",
        prompt=as_user_turn(tokenizer, text) if chat else text,
        target=choices[question.answer],
        choices=choices,
        metadata={**metadata, "chance": 1 / len(choices), "num_fewshot": len(shots), "layout": layout},
    )


def drawn(available: int, n: int | None, *, draw: str) -> Sequence[int]:
    """Which of ``available`` questions are scored: all of them, or ``n`` drawn by a random generator of its own.

    Raises:
        SampleError: ``n`` outside 1..available.

    >>> list(drawn(3, None, draw="0/rte")), len(drawn(300, 2, draw="0/rte"))
    ([0, 1, 2], 2)
    """
    if n is None:
        return range(available)
    if not 1 <= n <= available:
        raise SampleError(f"there are {available} questions; n must be in 1..{available} or None, got {n}")
    return random.Random(draw).sample(range(available), n)


def check_num_fewshot(num_fewshot: int, available: int, where: str) -> None:
    """Refuse more solved examples than there are.

    Raises:
        SampleError: ``num_fewshot`` outside 0..available.
    """
    if not 0 <= num_fewshot <= available:
        raise SampleError(f"num_fewshot must be in 0..{available} (the rows of {where}), got {num_fewshot}")
