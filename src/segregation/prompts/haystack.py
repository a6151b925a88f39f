"""Text to hide a needle in, from the zoo's language, CPython's reference, a folder of files or a dataset."""

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segregation.errors import SampleError
from segregation.zoo.words import Split

HaystackName = Literal["synthetic", "python-reference"]


@dataclass(frozen=True)
class Haystack:
    """A named source of running text.

    Attributes:
        name: stands in sample ids and metadata; no path.
        paragraphs: given a random generator, yields paragraphs without end, from a place that the generator draws.
    """

    name: str
    paragraphs: Callable[[random.Random], Iterator[str]]

    def text(self, rng: random.Random, n_characters: int) -> str:
        """At least ``n_characters`` of text: whole paragraphs with blank lines between them."""
        found: list[str] = []
        size = 0
        for paragraph in self.paragraphs(rng):
            found.append(paragraph)
            size += len(paragraph) + 2
            if size >= n_characters + 2:
                break
        return "\n\n".join(found)


def named(name: HaystackName) -> Haystack:
    """The haystack of a name that ``needle_grid`` takes.

    Raises:
        SampleError: no haystack has this name.

    >>> named("synthetic").text(random.Random(0), 30)[:28]
    'This is a story about the fa'
    """
    match name:
        case "synthetic":
            return synthetic()
        case "python-reference":
            return python_reference()
    raise SampleError(
        f'a haystack is "synthetic", "python-reference" or a Haystack, got {name!r}; '
        "for your own text use haystack.folder(path), haystack.dataset(name) or haystack.texts(name, texts)"
    )


def synthetic(split: Split = "heldout") -> Haystack:
    """Documents of the zoo's language, fresh for every sample."""
    from segregation.zoo.language import write_document

    def paragraphs(rng: random.Random) -> Iterator[str]:
        while True:
            yield from write_document(rng, split).text.split("\n\n")

    return Haystack("synthetic", paragraphs)


def python_reference(split: Split = "heldout") -> Haystack:
    """Prose of CPython's own reference; the half that no bundled model was trained on, unless asked otherwise.

    >>> len(python_reference().text(random.Random(0), 500)) >= 500
    True
    """
    from segregation.zoo.reference import paragraphs

    return texts("python-reference", paragraphs(split))


def texts(name: str, texts: Sequence[str]) -> Haystack:
    """Texts of your own, in their order, from a drawn place on, and round again where they end.

    Raises:
        SampleError: no text that is more than spaces.

    >>> texts("mine", ["One.", "Two."]).text(random.Random(0), 12)
    'Two.\\n\\nOne.\\n\\nTwo.'
    """
    kept = tuple(text.strip() for text in texts if text.strip())
    if not kept:
        raise SampleError(f"haystack {name!r} has no text; give it at least one paragraph")

    def paragraphs(rng: random.Random) -> Iterator[str]:
        start = rng.randrange(len(kept))
        return itertools.islice(itertools.cycle(kept), start, None)

    return Haystack(name, paragraphs)


def folder(path: Path | str) -> Haystack:
    """The paragraphs of every .txt file in a folder and the folders in it, in order of their paths (UTF-8).

    Raises:
        SampleError: no such folder, no .txt file with text in it, or a file that is not UTF-8.
    """
    path = Path(path)
    if not path.is_dir():
        raise SampleError(f"a haystack folder must exist, got {str(path)!r}; give a folder with .txt files in it")
    found: list[str] = []
    for file in sorted(path.rglob("*.txt"), key=lambda file: file.relative_to(path).as_posix()):
        try:
            found += re.split(r"\n\s*\n", file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise SampleError(f"haystack files must be UTF-8, {file} is not ({error}); convert it") from error
    if not any(text.strip() for text in found):
        raise SampleError(f"a haystack folder must hold .txt files with text, {str(path)!r} does not; add one")
    return texts(path.resolve().name, found)


def dataset(name: str, *, config: str | None = None, split: str = "train", column: str = "text") -> Haystack:
    """A text column of a ``datasets`` dataset, by its hub name or local path; one paragraph per row.

    Raises:
        SampleError: the dataset cannot be loaded (for example: no network and not in the local cache), or has no such
            split or text column.
    """
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises a dozen unrelated classes for "not here"
        raise SampleError(
            f"the dataset {name!r} (config {config!r}, split {split!r}) could not be loaded: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}. "
            "Without a network it must be in the local cache: load it once on a machine with a network and copy its "
            'cache (HF_HOME), or use haystack="synthetic" or "python-reference", which are on every machine'
        ) from error
    if not isinstance(rows, datasets.Dataset) or column not in rows.column_names:
        columns = rows.column_names if isinstance(rows, datasets.Dataset) else None
        raise SampleError(f"dataset {name!r} has the columns {columns}, not {column!r}; name its text column")
    return texts(Path(name).name, [str(text) for text in rows[column]])
