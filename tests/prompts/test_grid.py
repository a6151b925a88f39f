from pathlib import Path

import pytest

from segregation.errors import SampleError
from segregation.prompts.grid import Grid, haystack_of
from segregation.prompts.needle import needle_grid


def test_a_grid_makes_the_samples_of_needle_grid(tokenizer) -> None:
    grid = Grid(lengths=(150, 300), depths=(0, 50), needles="classic", readings=2, copies=2, seed=3)
    assert grid.samples(tokenizer) == needle_grid(tokenizer, (150, 300), (0, 50), seed=3, readings=2, copies=2)


def test_haystacks_by_name_and_by_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.", encoding="utf-8")
    assert haystack_of("synthetic").name == "synthetic"
    assert haystack_of(f"folder:{tmp_path}").name == tmp_path.name


@pytest.mark.parametrize("text", ["", "wikipedia", "folder:", "synthetic:x", "dataset:"])
def test_other_haystacks_are_refused_by_name(text: str) -> None:
    with pytest.raises(SampleError, match="folder:PATH"):
        haystack_of(text)
