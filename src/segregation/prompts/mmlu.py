"""MMLU as samples: four-choice questions from 57 subjects, in the format of its authors. (Hendrycks et al. 2021)"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segregation.errors import SampleError
from segregation.prompts.choices import Question, check_num_fewshot, choice_sample, drawn
from segregation.prompts.needle import Layout
from segregation.prompts.sample import Sample
from segregation.prompts.splits import load_split
from segregation.prompts.tokens import Tokenizer

SUBJECTS = tuple(
    """abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory
    professional_accounting professional_law professional_medicine professional_psychology public_relations
    security_studies sociology us_foreign_policy virology world_religions""".split()
)
"""The 57 subjects, each a config of the dataset."""
COLUMNS = ("question", "choices", "answer")
LETTERS = ("A", "B", "C", "D")
HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"


def mmlu(
    tokenizer: Tokenizer,
    subjects: str | Sequence[str] = SUBJECTS,
    *,
    n: int | None = None,
    num_fewshot: int = 5,
    layout: Layout = "base",
    seed: int = 0,
    source: str | Path = "cais/mmlu",
) -> list[Sample]:
    """Questions of the test split; the letters A to D are scored, after the first questions of the dev split, solved.

    Args:
        tokenizer: the model's, for its chat template.
        subjects: of ``SUBJECTS``, one or several; all unless told.
        n: how many questions, drawn with the seed from those of all these subjects; ``None`` for every one.
        num_fewshot: solved questions of the same subject before each, 0..5, in the dev split's order.
        layout: prompt for a "base" or a "chat" model; "chat" puts all of it into one user turn.
        seed: of the draw of ``n``.
        source: the dataset's name on the hub, or a folder with ``SUBJECT/test.parquet`` and ``SUBJECT/dev.parquet``
            (or .jsonl, .json) of the columns ``question``, ``choices`` (four) and ``answer`` (0..3).

    Raises:
        SampleError: an unknown subject or one named twice; a split that is not to be had or has other columns;
            ``n`` or ``num_fewshot`` beyond what there is; no chat template for ``layout="chat"``.

    >>> import json, pathlib, tempfile
    >>> from segregation.models.load import load_model
    >>> row = {"question": "What is 2 + 2?", "choices": ["1", "2", "3", "4"], "answer": 3}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (pathlib.Path(folder) / "anatomy").mkdir()
    ...     for split in ("dev", "test"):
    ...         _ = (pathlib.Path(folder) / "anatomy" / f"{split}.jsonl").write_text(json.dumps(row))
    ...     [sample] = mmlu(load_model("tiny-jamba").tokenizer, "anatomy", num_fewshot=1, source=folder)
    >>> sample.id, sample.target, sample.metadata["chance"]
    ('mmlu/anatomy/test-0/base/1-shot', ' D', 0.25)
    """
    subjects = _checked([subjects] if isinstance(subjects, str) else list(subjects))
    tests = {subject: load_split(source, subject, "test", COLUMNS) for subject in subjects}
    questions = [(subject, position) for subject, rows in tests.items() for position in range(len(rows))]
    chosen = [questions[number] for number in drawn(len(questions), n, draw=f"{seed}/mmlu")]
    shots = {subject: _shots(source, subject, num_fewshot) for subject in dict.fromkeys(name for name, _ in chosen)}
    return [
        choice_sample(
            tokenizer,
            _question(tests[subject][position], f"{subject}, test, row {position}"),
            id=f"mmlu/{subject}/test-{position}",
            metadata={"task": "mmlu", "subject": subject},
            layout=layout,
            header=HEADER.format(subject=subject.replace("_", " ")),
            shots=shots[subject],
        )
        for subject, position in chosen
    ]


def _checked(subjects: list[str]) -> list[str]:
    for subject in subjects:
        if subject not in SUBJECTS:
            close = difflib.get_close_matches(subject, SUBJECTS)
            raise SampleError(
                f"MMLU has no subject {subject!r}; segregation.prompts.mmlu.SUBJECTS lists all 57"
                + (f", of which {close} are close" if close else "")
            )
    if not subjects or len(set(subjects)) < len(subjects):
        raise SampleError(f"subjects are different and at least one, got {subjects}")
    return subjects


def _shots(source: str | Path, subject: str, num_fewshot: int) -> list[Question]:
    if num_fewshot == 0:
        return []
    rows = load_split(source, subject, "dev", COLUMNS)
    check_num_fewshot(num_fewshot, len(rows), f"{subject}'s dev split")
    return [_question(rows[position], f"{subject}, dev, row {position}") for position in range(num_fewshot)]


def _question(row: Mapping[str, Any], where: str) -> Question:
    question, choices, answer = (row[column] for column in COLUMNS)
    texts = [question, *choices] if isinstance(choices, list) else []
    if len(texts) != 1 + len(LETTERS) or not all(isinstance(text, str) for text in texts) or type(answer) is not int:
        raise SampleError(
            f"a question of MMLU is a text with four choices (a list of texts) and a whole number as its answer; "
            f"{where} is {dict(row)!r:.200}. Convert it"
        )
    lines = [question.strip(), *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))]
    return Question("\n".join([*lines, "Answer:"]), LETTERS, answer)
