import json

import pytest

import segregation as sg
from segregation.errors import SampleError
from segregation.prompts.mmlu import SUBJECTS, mmlu


def row(number):
    return {
        "question": f" How many are {number} and 1?\n",
        "subject": "x",
        "choices": [str(number + i) for i in range(4)],
        "answer": number % 4,
    }


def write(folder, subject, *, dev=5, test=3):
    (folder / subject).mkdir(parents=True)
    for split, numbers in (("dev", range(100, 100 + dev)), ("test", range(test))):
        text = "".join(json.dumps(row(number)) + "\n" for number in numbers)
        (folder / subject / f"{split}.jsonl").write_text(text)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "world_religions")
    write(tmp_path, "anatomy", test=4)
    return tmp_path


def test_the_format_is_hendrycks_et_als(tokenizer, folder):
    sample = mmlu(tokenizer, "world_religions", num_fewshot=1, source=folder)[2]
    assert sample.prompt == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "How many are 100 and 1?\nA. 100\nB. 101\nC. 102\nD. 103\nAnswer: A\n\n"
        "How many are 2 and 1?\nA. 2\nB. 3\nC. 4\nD. 5\nAnswer:"
    )
    assert sample.choices == (" A", " B", " C", " D")
    assert sample.target == " C"
    assert sample.id == "mmlu/world_religions/test-2/base/1-shot"
    assert sample.metadata == {
        "task": "mmlu",
        "subject": "world_religions",
        "chance": 0.25,
        "num_fewshot": 1,
        "layout": "base",
    }


def test_five_shots_are_the_dev_split_in_order_and_none_keep_the_header(tokenizer, folder):
    full = mmlu(tokenizer, ["anatomy"], source=folder)[0].prompt
    assert [full.index(f"How many are {number} and") for number in (100, 101, 102, 103, 104, 0)] == sorted(
        full.index(f"How many are {number} and") for number in (100, 101, 102, 103, 104, 0)
    )
    bare = mmlu(tokenizer, ["anatomy"], num_fewshot=0, source=folder)[0].prompt
    assert bare.startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\nHow many are 0"
    )


def test_chat_is_one_user_turn_and_letters_without_a_space(tokenizer, folder):
    base, chat = (mmlu(tokenizer, "anatomy", layout=layout, source=folder)[1] for layout in ("base", "chat"))
    assert chat.prompt == f"<|user|>\n{base.prompt}\n<|assistant|>\n"
    assert chat.choices == ("A", "B", "C", "D") and chat.target == "B"
    assert chat.id != base.id


def test_all_subjects_asked_for_are_pooled_and_n_is_drawn_from_the_pool(tokenizer, folder):
    subjects = ("anatomy", "world_religions")
    everything = mmlu(tokenizer, subjects, source=folder)
    assert [sample.metadata["subject"] for sample in everything] == ["anatomy"] * 4 + ["world_religions"] * 3
    assert len({sample.id for sample in everything}) == 7
    some = mmlu(tokenizer, subjects, n=5, seed=1, source=folder)
    assert some == mmlu(tokenizer, subjects, n=5, seed=1, source=folder)
    assert some != mmlu(tokenizer, subjects, n=5, seed=2, source=folder)
    assert len(some) == 5 and all(sample in everything for sample in some)


def test_there_are_57_subjects():
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57
    assert list(SUBJECTS) == sorted(SUBJECTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subjects": "anatomi"}, r"no subject 'anatomi'; .*lists all 57, of which \['anatomy'"),
        ({"subjects": "all"}, "lists all 57$"),
        ({"subjects": []}, "at least one"),
        ({"subjects": ["anatomy", "anatomy"]}, "different"),
        ({"subjects": "anatomy", "n": 5}, r"n must be in 1\.\.4"),
        ({"subjects": "anatomy", "n": 0}, r"n must be in 1\.\.4"),
        ({"subjects": "anatomy", "num_fewshot": 6}, r"0\.\.5 \(the rows of anatomy's dev split\), got 6"),
        ({"subjects": "anatomy", "num_fewshot": -1}, r"0\.\.5"),
        ({"subjects": "virology"}, r"virology/test.parquet"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer, folder, arguments, message):
    with pytest.raises(SampleError, match=message):
        mmlu(tokenizer, source=folder, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a", "b", "c"]}, "four choices.*anatomy, test, row 0"),
        ({"answer": "A"}, "whole number"),
        ({"answer": 4}, r"0\.\.3, got 4"),
        ({"question": None}, "four choices"),
    ],
)
def test_rows_of_another_shape_are_refused(tokenizer, folder, change, message):
    (folder / "anatomy" / "test.jsonl").write_text(json.dumps(row(1) | change) + "\n")
    with pytest.raises(SampleError, match=message):
        mmlu(tokenizer, "anatomy", source=folder)


@pytest.mark.parametrize("layout", ["base", "chat"])
def test_a_bundled_model_scores_it_under_plans(folder, layout):
    model = sg.load_model("tiny-recurrentgemma")
    samples = mmlu(model.tokenizer, "world_religions", num_fewshot=2, layout=layout, source=folder)
    for sample in samples:
        for choice in sample.choices:
            assert model.encode(sample) + model.encode_continuation(choice) == model.encode(sample.prompt + choice)
    plans = [sg.Plan(), sg.Plan(sg.AblateHeads("all"))]
    records = list(sg.loglikelihood(model, samples, plans))
    assert len(records) == 6
    found = {plan.hash: [record for record in records if record.plan_hash == plan.hash] for plan in plans}
    for record in records:
        score = sg.choice_accuracy(record)
        best = max(range(4), key=lambda choice, record=record: record.loglikelihoods[choice])
        assert score.answer == record.choices[best] and score.acc == score.acc_norm == (score.answer == record.target)
        assert record.metadata["task"] == "mmlu" and record.token_counts == (1, 1, 1, 1)
    base, ablated = ([record.loglikelihoods for record in found[plan.hash]] for plan in plans)
    assert base != ablated
