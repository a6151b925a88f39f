"""Prose that is on every machine: paragraphs of CPython's own reference, half for training and half held out.

Topics are split by name; a held-out paragraph that also stands under a training topic is left out.
"""

import functools
import re

from segregation.zoo.needles import gives_away_classic
from segregation.zoo.words import Split


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics  # 0.5 MB; only when somebody wants it

    return topics


def topic_split(topic: str) -> Split:
    """The side of a reference topic, by the sum of its name's character codes: even is training.

    >>> topic_split("while"), topic_split("with")
    ('heldout', 'train')
    """
    return "train" if sum(map(ord, topic)) % 2 == 0 else "heldout"


def _prose(text: str) -> list[str]:
    """Paragraphs that read as prose: reflowed to one line, at least 60 characters, no grammar tables or code."""
    paragraphs = []
    for raw in re.split(r"\n\s*\n", text):
        lines = raw.split("\n")
        if any(line.startswith(("   ", "***", "===", "---", "~~~", ">>>")) or "::=" in line for line in lines):
            continue
        paragraph = re.sub(r"\s+", " ", raw).strip().lstrip("*-• ").strip()
        if len(paragraph) >= 60 and paragraph.endswith((".", ":", ")")):
            paragraphs.append(paragraph)
    return paragraphs


@functools.cache
def paragraphs(split: Split) -> tuple[str, ...]:
    """The prose paragraphs of one half of the reference, in order of topic, each once.

    >>> set(paragraphs("train")) & set(paragraphs("heldout"))
    set()
    """
    sides: dict[Split, dict[str, None]] = {"train": {}, "heldout": {}}
    for topic, text in sorted(_topics().items()):
        sides[topic_split(topic)].update(dict.fromkeys(_prose(text)))
    kept = sides["train"] if split == "train" else [p for p in sides["heldout"] if p not in sides["train"]]
    return tuple(paragraph for paragraph in kept if not gives_away_classic(paragraph))
