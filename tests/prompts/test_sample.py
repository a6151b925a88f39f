import pytest

from segregation.errors import SampleError
from segregation.prompts.render import base_prompt
from segregation.prompts.sample import Sample


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "Sample.id must not be empty"),
        ({"prompt": ""}, "Sample.prompt must not be empty"),
        ({"target": ""}, "Sample.target must not be empty"),
        ({"choices": ("a", "b")}, "one of the choices"),
        ({"choices": ("x", "")}, "different and not empty"),
        ({"spans": {"needle": ((3, 9),)}}, r"0\.\.7 characters, got \(3, 9\)"),
        ({"spans": {"needle": ((3, 3),)}}, r"got \(3, 3\)"),
    ],
)
def test_impossible_samples_are_refused(fields, message):
    with pytest.raises(SampleError, match=message):
        Sample(**{"id": "a", "prompt": "one two", "target": "x", **fields})


def test_an_absent_span_is_refused_with_those_there_are():
    sample = Sample(id="a", prompt="one two", target="x", spans={"needle": ((0, 3), (4, 7))})
    assert sample.text_of("needle") == ("one", "two")
    with pytest.raises(SampleError, match=r"has the spans \['needle'\], not 'haystack'"):
        sample.text_of("haystack")


def test_braces_in_a_text_stay_as_they_are():
    assert base_prompt("{context} {}", "{question}?").startswith("CONTEXT: {context} {}\n\nQUESTION: {question}?\n\n")
