"""GLUE as samples: its nine classification tasks, with question and labels in words. (Wang et al. 2019)"""

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segregation.errors import SampleError
from segregation.prompts.choices import Question, check_num_fewshot, choice_sample, drawn
from segregation.prompts.needle import Layout
from segregation.prompts.sample import Sample
from segregation.prompts.splits import load_split
from segregation.prompts.tokens import Tokenizer

Metric = Literal["accuracy", "f1", "matthews_correlation"]


@dataclass(frozen=True)
class Task:
    """How one task of GLUE is asked and scored; wording and words are lm-eval's.

    Attributes:
        template: the question, with the columns of a row in braces.
        choices: a word per label, in the labels' order.
        config: the dataset's config.
        split: the split that is scored, whose labels are public.
        metrics: what the benchmark reports, the headline number first.
        full_stop: columns that are stripped and end in a full stop, which is added where there is none.
    """

    template: str
    choices: tuple[str, ...]
    config: str
    split: str = "validation"
    metrics: tuple[Metric, ...] = ("accuracy",)
    full_stop: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns with the texts.

        >>> TASKS["rte"].columns
        ('sentence1', 'sentence2')
        """
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.template) if name)


_TRUE_OR_FALSE = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
_MNLI = Task(
    "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:",
    ("True", "Neither", "False"),
    "mnli",
    "validation_matched",
    full_stop=("hypothesis",),
)
TASKS: Mapping[str, Task] = {
    "cola": Task(
        "{sentence}\nQuestion: Does this sentence make sense?\nAnswer:",
        ("no", "yes"),
        "cola",
        metrics=("matthews_correlation",),
    ),
    "sst2": Task(
        "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:", ("negative", "positive"), "sst2"
    ),
    "mrpc": Task(
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        ("no", "yes"),
        "mrpc",
        metrics=("f1", "accuracy"),
    ),
    "qqp": Task(
        "Question 1: {question1}\nQuestion 2: {question2}\nQuestion: Do both questions ask the same thing?\nAnswer:",
        ("no", "yes"),
        "qqp",
        metrics=("f1", "accuracy"),
    ),
    "mnli": _MNLI,
    "mnli_mismatched": Task(
        _MNLI.template, _MNLI.choices, _MNLI.config, "validation_mismatched", full_stop=_MNLI.full_stop
    ),
    "qnli": Task(
        "{question}\n{sentence}\nQuestion: Does this response answer the question?\nAnswer:", ("yes", "no"), "qnli"
    ),
    "rte": Task(_TRUE_OR_FALSE, ("True", "False"), "rte"),
    "wnli": Task(_TRUE_OR_FALSE, ("False", "True"), "wnli"),
}
"""The tasks that can be asked as a choice, by their names in GLUE."""
REFUSED = {
    "stsb": "it is a regression (a similarity from 0 to 5), not a choice",
    "ax": "its labels were never published",
}
"""The other two, and why."""


def glue(
    tokenizer: Tokenizer,
    task: str,
    *,
    n: int | None = None,
    num_fewshot: int = 0,
    layout: Layout = "base",
    seed: int = 0,
    source: str | Path = "nyu-mll/glue",
) -> list[Sample]:
    """Rows of a task's validation split (its test labels are hidden); the labels' words are scored.

    Args:
        tokenizer: the model's, for its chat template.
        task: of ``TASKS``.
        n: how many rows, drawn with the seed; ``None`` for every one.
        num_fewshot: solved rows of the train split before each, drawn with the seed anew for every row.
        layout: prompt for a "base" or a "chat" model; "chat" puts all of it into one user turn.
        seed: of both draws.
        source: the dataset's name on the hub, or a folder with ``CONFIG/validation.parquet`` and, for few shots,
            ``CONFIG/train.parquet`` (or .jsonl, .json) of GLUE's own columns.

    Raises:
        SampleError: a task that GLUE does not have or that is no choice (``stsb``, ``ax``); a split that is not to be
            had or has other columns; ``n`` or ``num_fewshot`` beyond what there is; no chat template.

    >>> import pathlib, tempfile
    >>> from segregation.models.load import load_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (pathlib.Path(folder) / "cola").mkdir()
    ...     _ = (pathlib.Path(folder) / "cola" / "validation.jsonl").write_text('{"sentence": "They go.", "label": 1}')
    ...     [sample] = glue(load_model("tiny-jamba").tokenizer, "cola", source=folder)
    >>> sample.choices, sample.target, sample.metadata["metric"]
    ((' no', ' yes'), ' yes', 'matthews_correlation')
    """
    if task in REFUSED:
        raise SampleError(f"GLUE's {task} cannot be scored as a choice: {REFUSED[task]}. Use one of {list(TASKS)}")
    if task not in TASKS:
        raise SampleError(f"a task of GLUE is one of {list(TASKS)}, got {task!r}")
    asked = TASKS[task]
    columns = (*asked.columns, "label")
    scored = load_split(source, asked.config, asked.split, columns)
    chosen = drawn(len(scored), n, draw=f"{seed}/glue/{task}")
    train = load_split(source, asked.config, "train", columns) if num_fewshot else ()
    check_num_fewshot(num_fewshot, len(train), f"{asked.config}'s train split")
    samples = []
    for position in chosen:
        rng = random.Random(f"{seed}/glue/{task}/{position}")
        shots = [
            _question(asked, train[row], f"{task}, train, row {row}")
            for row in rng.sample(range(len(train)), num_fewshot)
        ]
        sample = choice_sample(
            tokenizer,
            _question(asked, scored[position], f"{task}, {asked.split}, row {position}"),
            id=f"glue/{task}/{asked.split}-{position}" + (f"/seed-{seed}" if shots else ""),
            metadata={"task": f"glue/{task}", "metric": ", ".join(asked.metrics)},
            layout=layout,
            shots=shots,
        )
        samples.append(sample)
    return samples


def _question(task: Task, row: Mapping[str, Any], where: str) -> Question:
    texts = {column: row[column] for column in task.columns}
    if not all(isinstance(text, str) for text in texts.values()) or type(row["label"]) is not int:
        raise SampleError(
            f"a row of GLUE has texts and a whole number as its label; {where} is {dict(row)!r:.200}. Convert it"
        )
    for column in task.full_stop:
        texts[column] = texts[column].strip().removesuffix(".") + "."
    return Question(task.template.format(**texts), task.choices, row["label"])
