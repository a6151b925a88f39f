"""Whether a generated text contains the needle: rubric, exact match, token recall; and the needle's log-probability."""

import string
import unicodedata
from collections import Counter
from dataclasses import dataclass

from segregation.errors import ScoreError
from segregation.runs.record import Record
from segregation.zoo.needles import CLASSIC


@dataclass(frozen=True)
class Score:
    """How well one generated text retrieves its needle.

    Attributes:
        value: in 0..1. Classic needle: rubric / 5 (its mean over samples is the paper's "average"). Any other needle:
            token recall.
        exact: the whole needle is there (the paper's score of 5).
        token_recall: share of the needle's words that the text has, in any order.
        answer: the generated text.
    """

    value: float
    exact: bool
    token_recall: float
    answer: str


def normalise(text: str) -> str:
    """Lowercase, without punctuation, runs of white space folded to one space.

    >>> normalise(" Dolores\\n Park,  on a SUNNY day. ")
    'dolores park on a sunny day'
    """
    kept = (c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join("".join(kept).split())


def rubric(text: str) -> float:
    """Points of arXiv 2510.19861 for the classic needle, 0..5.

    The whole needle is 5; else +1 "eat a sandwich", +0.5 "dolores park" (+0.5 more if "sit in dolores park"),
    +1 "on a sunny day". Compared after ``normalise``.

    >>> rubric("Eat a sandwich in Dolores Park"), rubric(CLASSIC.sentence)
    (1.5, 5.0)
    """
    found = normalise(text)
    if normalise(CLASSIC.sentence) in found:
        return 5.0
    points = {"eat a sandwich": 1.0, "dolores park": 0.5, "sit in dolores park": 0.5, "on a sunny day": 1.0}
    return sum((value for phrase, value in points.items() if phrase in found), start=0.0)


def exact(text: str, needle: str) -> bool:
    """Whether the text has the whole needle, after ``normalise``, as whole words ("12" is not in "123").

    Raises:
        ScoreError: a needle without a letter or digit.

    >>> exact("It is: ANN has a cat!", "Ann has a cat."), exact("There are 123.", "There are 12.")
    (True, False)
    """
    return f" {_words(needle)} " in f" {normalise(text)} "


def token_recall(text: str, needle: str) -> float:
    """Share of the needle's words found in the text, each occurrence once, after ``normalise``.

    Raises:
        ScoreError: a needle without a letter or digit.

    >>> token_recall("a cat", "Ann has a cat.")
    0.5
    """
    wanted = Counter(_words(needle).split())
    return (wanted & Counter(normalise(text).split())).total() / wanted.total()


def retrieval_score(record: Record) -> Score:
    """Score a generation record against its target, the needle.

    Raises:
        ScoreError: a record of another kind, or of a choice task.
    """
    if record.kind != "generate" or record.choices:
        raise ScoreError(
            f"retrieval is scored on generated text; record {record.key!r} is a {record.kind} record "
            f"with {len(record.choices)} choices. Use choice_accuracy or target_loglikelihood"
        )
    recall = token_recall(record.text, record.target)
    if record.target == CLASSIC.sentence:
        points = rubric(record.text)
        return Score(points / 5, points == 5, recall, record.text)
    return Score(recall, exact(record.text, record.target), recall, record.text)


def target_loglikelihood(record: Record) -> float:
    """Summed log-probability of the target, in nats.

    Raises:
        ScoreError: a record that was not scored by log-likelihood.
    """
    if record.kind != "loglikelihood":
        raise ScoreError(f"record {record.key!r} is a {record.kind} record; run loglikelihood() on its sample")
    return record.loglikelihoods[record.choices.index(record.target) if record.choices else 0]


def _words(needle: str) -> str:
    words = normalise(needle)
    if not words:
        raise ScoreError(f"a needle has at least one letter or digit, got {needle!r}")
    return words
