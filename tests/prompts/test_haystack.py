import inspect
import itertools
import random

import pytest

from segregation.errors import SampleError
from segregation.prompts import haystack
from segregation.zoo import reference
from segregation.zoo.words import split_of


@pytest.mark.parametrize("name", ["synthetic", "python-reference"])
def test_named_haystacks_give_as_much_as_asked_and_always_the_same(name):
    source = haystack.named(name)
    text = source.text(random.Random("a"), 5000)
    assert len(text) >= 5000
    assert text == haystack.named(name).text(random.Random("a"), 5000)
    assert text != source.text(random.Random("b"), 5000)
    assert source.text(random.Random("a"), 9000).startswith(text)


def test_named_haystacks_are_the_held_out_half():
    paragraphs = itertools.islice(haystack.python_reference().paragraphs(random.Random(0)), 1000)
    assert not set(paragraphs) & set(reference.paragraphs("train"))
    documents = haystack.synthetic().text(random.Random(0), 3000).split("This is a story about")
    assert split_of("This is a story about" + documents[1].strip("\n")) == "heldout"


def test_a_folder_is_read_in_order_of_its_paths(tmp_path):
    (tmp_path / "b.txt").write_text("Second.\n\nThird.")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_text("First ü.", encoding="utf-8")
    (tmp_path / "ignored.md").write_text("Never.")
    source = haystack.folder(tmp_path)
    assert source.name == tmp_path.name
    paragraphs = list(itertools.islice(source.paragraphs(random.Random(0)), 7))
    at = paragraphs.index("First ü.")
    assert paragraphs[at : at + 3] == ["First ü.", "Second.", "Third."]
    assert "Never." not in paragraphs


def test_folders_without_text_are_refused(tmp_path):
    with pytest.raises(SampleError, match="must exist"):
        haystack.folder(tmp_path / "nowhere")
    with pytest.raises(SampleError, match=r"must hold \.txt files"):
        haystack.folder(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SampleError, match=r"UTF-8, .*a\.txt"):
        haystack.folder(tmp_path)


def test_a_dataset_that_is_not_here_is_an_error_in_plain_words(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SampleError, match="local cache: load it once on a machine with a network"):
        haystack.dataset("nobody/no-such-dataset")


def test_a_dataset_gives_its_text_column(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"body": ["One.", "Two."], "number": [1, 2]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    source = haystack.dataset("owner/tales", column="body")
    assert source.name == "tales"
    assert set(itertools.islice(source.paragraphs(random.Random(0)), 2)) == {"One.", "Two."}
    with pytest.raises(SampleError, match="name its text column"):
        haystack.dataset("owner/tales")


def test_unknown_names_and_empty_texts_are_refused():
    with pytest.raises(SampleError, match=r"haystack\.folder\(path\)"):
        inspect.unwrap(haystack.named)("essays")  # the type checker of the tests would refuse it first
    with pytest.raises(SampleError, match="has no text"):
        haystack.texts("mine", ["", "  \n"])
