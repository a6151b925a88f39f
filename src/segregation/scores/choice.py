"""Which choice a model prefers by log-likelihood, and whether it is the right one."""

from dataclasses import dataclass

from segregation.errors import ScoreError
from segregation.runs.record import Record


@dataclass(frozen=True)
class ChoiceScore:
    """One choice question, scored.

    Attributes:
        acc: the choice with the highest summed log-probability is the target.
        acc_norm: the same after dividing by each choice's length in characters.
        answer: the choice that ``acc`` is about.
        answer_norm: the choice that ``acc_norm`` is about.
    """

    acc: bool
    acc_norm: bool
    answer: str
    answer_norm: str


def choice_accuracy(record: Record) -> ChoiceScore:
    """Score a choice record with lm-eval's definitions; ties go to the first choice.

    The one space between context and choice is lm-eval's delimiter, no part of the choice: it is not counted as a
    character.

    Raises:
        ScoreError: a record of another kind, without choices, or with a choice of no characters.

    >>> record = Record(kind="loglikelihood", sample_id="a", prompt_sha256="", target=" yes", plan="", plan_hash="",
    ...                 prompt_tokens=3, choices=(" no", " yes"), loglikelihoods=(-2.0, -2.4), token_counts=(1, 1))
    >>> choice_accuracy(record)
    ChoiceScore(acc=False, acc_norm=True, answer=' no', answer_norm=' yes')
    """
    if record.kind != "loglikelihood" or not record.choices:
        raise ScoreError(
            f"a choice is scored by the log-likelihood of each choice; record {record.key!r} is a {record.kind} record "
            f"with {len(record.choices)} choices. Run loglikelihood() on samples with choices"
        )
    lengths = [len(choice.removeprefix(" ")) for choice in record.choices]
    if not all(lengths):
        raise ScoreError(f"acc_norm divides by a choice's characters; record {record.key!r} has {record.choices}")
    ranks = range(len(record.choices))
    best = max(ranks, key=lambda i: record.loglikelihoods[i])
    best_norm = max(ranks, key=lambda i: record.loglikelihoods[i] / lengths[i])
    answer, answer_norm = record.choices[best], record.choices[best_norm]
    return ChoiceScore(answer == record.target, answer_norm == record.target, answer, answer_norm)
