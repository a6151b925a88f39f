import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segregation.errors import RecordError
from segregation.prompts.sample import Sample
from segregation.runs.record import Record, prompt_sha256, record_key

plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
mappings = st.dictionaries(st.text(min_size=1), plain, max_size=3)
texts = st.text(st.characters(codec=None), min_size=1)  # lone surrogates too


@st.composite
def fields(draw):
    choices = tuple(draw(st.lists(texts, max_size=4, unique=True)))
    kind = draw(st.sampled_from(["generate", "loglikelihood", "measurement"]))
    n = max(1, len(choices)) if kind == "loglikelihood" else 0
    finite = st.floats(max_value=0, allow_infinity=False)
    return {
        "kind": kind,
        "sample_id": draw(texts),
        "prompt_sha256": prompt_sha256("a prompt"),
        "target": draw(texts),
        "plan": '{"rules":[]}',
        "plan_hash": "4f53cda18c2b",
        "prompt_tokens": draw(st.integers(1, 10**6)),
        "choices": choices,
        "metadata": draw(mappings),
        "tokens": tuple(draw(st.lists(st.integers(0, 10**6), max_size=5))),
        "text": draw(st.text()),
        "loglikelihoods": tuple(draw(st.lists(finite, min_size=n, max_size=n))),
        "token_counts": tuple(draw(st.lists(st.integers(1, 99), min_size=n, max_size=n))),
        "values": draw(st.dictionaries(st.text(), finite, min_size=1, max_size=3)) if kind == "measurement" else {},
        "settings": draw(mappings),
        "model": {"name": "tiny", "switched_off": ["fork"]},
        "provenance": draw(mappings),
    }


@given(fields=fields())
def test_a_record_survives_its_json_line(fields):
    record = Record(**fields)
    line = record.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert Record.from_json(line) == record
    assert json.loads(line)["key"] == record.key


def make(**changes):
    fields = {
        "kind": "generate",
        "sample_id": "a",
        "prompt_sha256": prompt_sha256("one two"),
        "target": "three",
        "plan": '{"rules":[]}',
        "plan_hash": "4f53cda18c2b",
        "prompt_tokens": 3,
    }
    return Record(**{**fields, **changes})


def test_the_key_tells_apart_what_gives_other_results_and_nothing_else():
    settings = [{}, {"max_new_tokens": 40}, {"max_new_tokens": 41}]
    keys = {
        record_key(kind, s, p, x)
        for kind in ("generate", "loglikelihood")
        for s in "ab"
        for p in "cd"
        for x in settings
    }
    assert len(keys) == 24
    assert make(provenance={"batch_size": 1}).key == make(provenance={"batch_size": 8}).key
    assert record_key("generate", "a", "p", {"x": 1, "y": 2}) == record_key("generate", "a", "p", {"y": 2, "x": 1})


def test_a_record_takes_what_it_needs_from_its_sample():
    sample = Sample(id="a", prompt="one two", target=" x", choices=(" x", " y"), metadata={"task": "facts"})
    record = Record.of(
        sample,
        kind="loglikelihood",
        plan="{}",
        plan_hash="0",
        prompt_tokens=3,
        loglikelihoods=(-1.0, -2.0),
        token_counts=(1, 1),
    )
    assert (record.sample_id, record.target, record.choices, dict(record.metadata)) == (
        "a",
        " x",
        (" x", " y"),
        {"task": "facts"},
    )
    assert record.prompt_sha256 == prompt_sha256("one two") != prompt_sha256("one  two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_id": ""}, "needs a sample_id"),
        ({"target": ""}, "and a target"),
        ({"kind": "loglikelihood"}, "has 1 loglikelihoods"),
        ({"kind": "loglikelihood", "choices": ("a", "b"), "loglikelihoods": (-1.0,), "token_counts": (1,)}, "has 2"),
        ({"loglikelihoods": (-1.0,), "token_counts": (1,)}, "has 0 loglikelihoods"),
        ({"kind": "loglikelihood", "loglikelihoods": (float("nan"),), "token_counts": (1,)}, "float32"),
        ({"kind": "loglikelihood", "loglikelihoods": (float("-inf"),), "token_counts": (1,)}, "must be finite"),
        ({"kind": "measurement"}, "one finite value or more"),
        ({"kind": "measurement", "values": {"recovery": float("nan")}}, "one finite value or more"),
        ({"values": {"recovery": 1.0}}, "no other kind has any"),
    ],
)
def test_impossible_records_are_refused(changes, message):
    with pytest.raises(RecordError, match=message):
        make(**changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_values_that_json_has_no_word_for_are_refused_when_written(value):
    with pytest.raises(RecordError, match=r"\.item\(\)"):
        make(provenance={"x": value}).to_json()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda plain: [plain], "JSON object"),
        (lambda plain: {**plain, "extra": 1}, r"not \['extra'\]"),
        (lambda plain: {k: v for k, v in plain.items() if k != "plan"}, r"\['plan'\], which are missing"),
        (lambda plain: {**plain, "prompt_tokens": "3"}, "prompt_tokens has the wrong type: '3'"),
        (lambda plain: {**plain, "prompt_tokens": True}, "prompt_tokens has the wrong type"),
        (lambda plain: {**plain, "tokens": [1, 2.5]}, "tokens has the wrong type"),
        (lambda plain: {**plain, "metadata": []}, "metadata has the wrong type"),
        (lambda plain: {**plain, "kind": "guess"}, "kind"),
        (lambda plain: {**plain, "sample_id": "b"}, "the key should be 'generate:b:"),
    ],
)
def test_lines_that_are_no_records_are_refused(spoil, message):
    with pytest.raises(Exception, match=message):
        Record.from_json(json.dumps(spoil(json.loads(make().to_json()))))
