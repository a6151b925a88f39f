import json

import pytest

from segregation.errors import SampleError
from segregation.prompts.glue import TASKS, glue

TEXTS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "mnli_mismatched": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
NAMES = {  # the label names in the hub's dataset card, in its order
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mnli_mismatched": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}
WORDS = {
    "cola": {"acceptable": "yes", "unacceptable": "no"},
    "sst2": {"positive": "positive", "negative": "negative"},
    "mrpc": {"equivalent": "yes", "not_equivalent": "no"},
    "qqp": {"duplicate": "yes", "not_duplicate": "no"},
    "mnli": {"entailment": "True", "contradiction": "False", "neutral": "Neither"},
    "mnli_mismatched": {"entailment": "True", "contradiction": "False", "neutral": "Neither"},
    "qnli": {"entailment": "yes", "not_entailment": "no"},
    "rte": {"entailment": "True", "not_entailment": "False"},
    "wnli": {"entailment": "True", "not_entailment": "False"},
}
VALIDATION = {"mnli": "validation_matched", "mnli_mismatched": "validation_mismatched"}


def row(task, split, number):
    texts = {column: f"{split} {column} {number} {{braces}}" for column in TEXTS[task]}
    return {**texts, "label": number % len(NAMES[task]), "idx": number}


def write(folder, task, *, train=6, validation=7):
    config = task.removesuffix("_mismatched")
    (folder / config).mkdir(exist_ok=True)
    for split, size in (("train", train), (VALIDATION.get(task, "validation"), validation)):
        rows = [row(task, split, number) for number in range(size)]
        (folder / config / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture
def folder(tmp_path):
    for task in TEXTS:
        write(tmp_path, task)
    return tmp_path


@pytest.mark.parametrize("task", TEXTS)
def test_every_task_shows_its_texts_and_names_its_labels(tokenizer, folder, task):
    samples = glue(tokenizer, task, source=folder)
    split = VALIDATION.get(task, "validation")
    assert len(samples) == len({sample.id for sample in samples}) == 7
    for number, sample in enumerate(samples):
        texts = [f"{split} {column} {number} {{braces}}" for column in TEXTS[task]]
        places = [sample.prompt.index(text) for text in texts]
        assert places == sorted(places)
        assert sample.prompt.endswith("?\nAnswer:")
        name = NAMES[task][number % len(NAMES[task])]
        assert sample.target == f" {WORDS[task][name]}"
        assert sample.choices == tuple(f" {WORDS[task][name]}" for name in NAMES[task])
        assert sample.metadata == {
            "task": f"glue/{task}",
            "metric": ", ".join(TASKS[task].metrics),
            "chance": 1 / len(NAMES[task]),
            "num_fewshot": 0,
            "layout": "base",
        }


def test_wording(tokenizer, folder):
    assert glue(tokenizer, "rte", source=folder)[1].prompt == (
        "validation sentence1 1 {braces}\nQuestion: validation sentence2 1 {braces} True or False?\nAnswer:"
    )
    (folder / "mnli" / "validation_matched.jsonl").write_text(
        json.dumps({"premise": "It rains.", "hypothesis": "It is wet ", "label": 0})
        + "\n"
        + json.dumps({"premise": "It rains.", "hypothesis": "It is dry.", "label": 2})
    )
    wet, dry = glue(tokenizer, "mnli", source=folder)
    assert wet.prompt == "It rains.\nQuestion: It is wet. True, False or Neither?\nAnswer:"
    assert dry.prompt == "It rains.\nQuestion: It is dry. True, False or Neither?\nAnswer:"
    assert (wet.target, dry.target) == (" True", " False")


def test_few_shots_are_solved_rows_of_train_drawn_for_each_row_with_the_seed(tokenizer, folder):
    samples = glue(tokenizer, "sst2", num_fewshot=3, seed=1, source=folder)
    zero = glue(tokenizer, "sst2", source=folder)
    solved = {
        f"train sentence {number} {{braces}}\nQuestion: Is this sentence positive or negative?\nAnswer: "
        f"{NAMES['sst2'][number % 2]}"
        for number in range(6)
    }
    drawn = set()
    for sample, plain in zip(samples, zero, strict=True):
        *shots, question = sample.prompt.split("\n\n")
        assert question == plain.prompt and sample.target == plain.target
        assert len(set(shots)) == 3 and set(shots) <= solved
        assert sample.metadata["num_fewshot"] == 3
        drawn.add(tuple(shots))
    assert len(drawn) > 1
    assert samples == glue(tokenizer, "sst2", num_fewshot=3, seed=1, source=folder)
    other = glue(tokenizer, "sst2", num_fewshot=3, seed=2, source=folder)
    assert not {sample.id for sample in other} & {sample.id for sample in samples}
    fewer = glue(tokenizer, "sst2", n=2, num_fewshot=3, seed=1, source=folder)
    assert all(sample in samples for sample in fewer)  # a sample does not depend on how many there are


def test_chat_is_one_user_turn_and_words_without_a_space(tokenizer, folder):
    base, chat = (glue(tokenizer, "qqp", num_fewshot=2, layout=layout, source=folder)[0] for layout in ("base", "chat"))
    assert chat.prompt == f"<|user|>\n{base.prompt}\n<|assistant|>\n"
    assert chat.choices == ("no", "yes")


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("stsb", {}, "stsb cannot be scored as a choice: it is a regression"),
        ("ax", {}, "ax cannot be scored as a choice: its labels were never published"),
        ("boolq", {}, r"one of \['cola', .*got 'boolq'"),
        ("rte", {"n": 8}, r"1\.\.7 or None, got 8"),
        ("rte", {"num_fewshot": 7}, r"0\.\.6 \(the rows of rte's train split\), got 7"),
        ("rte", {"num_fewshot": -1}, r"0\.\.6"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer, folder, task, arguments, message):
    with pytest.raises(SampleError, match=message):
        glue(tokenizer, task, source=folder, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -1}, r"0\.\.1, got -1.*labels are public"),
        ({"label": "yes"}, "whole number.*rte, validation, row 0"),
        ({"sentence1": None}, "has texts"),
    ],
)
def test_rows_of_another_shape_are_refused(tokenizer, folder, change, message):
    (folder / "rte" / "validation.jsonl").write_text(json.dumps(row("rte", "validation", 0) | change) + "\n")
    with pytest.raises(SampleError, match=message):
        glue(tokenizer, "rte", source=folder)


def test_columns_of_another_task_are_refused(tokenizer, folder):
    (folder / "rte" / "validation.jsonl").write_text(json.dumps(row("mnli", "validation", 0)) + "\n")
    with pytest.raises(SampleError, match=r"\['sentence1', 'sentence2'\] are missing, it has \['premise'"):
        glue(tokenizer, "rte", source=folder)
