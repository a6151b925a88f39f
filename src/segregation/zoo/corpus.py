"""Training sequences: haystacks with needles and questions, plain text, choice tasks and repeated chunks.

A sequence is a list of pieces of text with a loss weight each; pieces meet where the tokenizer splits anyway, so
encoding them one by one gives the tokens of the whole.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from segregation.prompts.render import BASE_SUFFIX, CHAT_SUFFIX
from segregation.zoo import reference
from segregation.zoo.language import write_document
from segregation.zoo.needles import LONGEST, Needle, draw_needle, gives_away_classic
from segregation.zoo.tasks import Choice, entailment, fact_statement, facts, sentiment
from segregation.zoo.tokenizer import ASSISTANT, BOS, EOS, SPECIALS, USER
from segregation.zoo.words import coin_word

HAYSTACK, NEEDLE, FORMAT, ANSWER, PLAIN, TASK = 0.3, 0.0, 0.1, 3.0, 1.0, 2.0
"""Loss weights of the kinds of token."""


@dataclass(frozen=True)
class Piece:
    """Some text, or ready-made token ids, with the loss weight of its tokens."""

    text: str | tuple[int, ...]
    weight: float


def sentences(paragraphs: Sequence[str]) -> list[str]:
    """Sentences with the space or blank line that stands before each, so that joining them gives the text back.

    >>> sentences(["One. Two.", "Three."])
    ['One.', ' Two.', '\\n\\nThree.']
    """
    found = []
    for number, paragraph in enumerate(paragraphs):
        parts = re.split(r"(?<=[.!?:;])(?= )", paragraph)
        parts[0] = ("\n\n" if number else "") + parts[0]
        found += parts
    return found


class Corpus:
    """Draws training sequences; everything in them lies on the training side of the split.

    Args:
        tokenizer: the zoo's.
        prose: files of running text for breadth; paragraphs that resemble the classic needle are dropped.
        seed: of the whole stream; two streams with different seeds share nothing but the files.
    """

    def __init__(self, tokenizer: Tokenizer, prose: Sequence[Path], seed: str) -> None:
        self.rng = random.Random(seed)
        self.tokenizer = tokenizer
        self.n_specials = len(SPECIALS)
        self.d_vocab = tokenizer.get_vocab_size()
        self.prose = sentences(prose_paragraphs(prose))
        self.reference = sentences(reference.paragraphs("train"))

    def sequence(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """``length`` token ids and the loss weight of each."""
        rng = self.rng
        ids: list[int] = []
        weights: list[float] = []
        if rng.random() < 0.55:
            self._add(self._needle_episode(min(length, rng.randrange(length * 5 // 8, length + 1))), ids, weights)
        while len(ids) < length:
            room = length - len(ids)
            draw = rng.random()
            if draw < 0.55 and room >= 120:
                pieces = self._needle_episode(rng.randrange(100, min(room, 560) + 1))
            elif draw < 0.70:
                pieces = self._plain(rng.randrange(60, 400))
            elif draw < 0.92:
                pieces = self._tasks(rng.randrange(2, 8))
            else:
                pieces = self._repeated_chunk()
            self._add(pieces, ids, weights)
        return np.array(ids[:length], dtype=np.int64), np.array(weights[:length], dtype=np.float32)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _add(self, pieces: list[Piece], ids: list[int], weights: list[float]) -> None:
        texts = [piece.text for piece in pieces if isinstance(piece.text, str)]
        encoded = iter(self._encode(texts))
        for piece in pieces:
            tokens = next(encoded) if isinstance(piece.text, str) else piece.text
            ids.extend(tokens)
            weights.extend([piece.weight] * len(tokens))

    def _text(self, n_tokens: int) -> list[str]:
        """Consecutive sentences of about ``n_tokens`` tokens (more rather than fewer), from one source."""
        rng, draw = self.rng, self.rng.random()
        n_characters = 6 * n_tokens + 60
        if draw < 0.45 or not self.prose:
            paragraphs: list[str] = []
            while sum(map(len, paragraphs)) < n_characters:
                paragraphs += write_document(rng, "train").text.split("\n\n")
            found = sentences(paragraphs)
            start = rng.randrange(len(found)) if rng.random() < 0.3 else 0
            found = found[start:] + found[:start]
        elif draw < 0.9:
            source = self.prose if draw < 0.72 else self.reference
            start, found, size = rng.randrange(len(source)), [], 0
            while size < n_characters:
                found.append(source[start % len(source)])
                size += len(found[-1])
                start += 1
        else:
            found = [s if s[0] in " \n" else " " + s for s in self._mixed(n_characters)]
        return [found[0].lstrip(), *found[1:]]

    def _mixed(self, n_characters: int) -> list[str]:
        """Sentences from everywhere in no order, needles that nobody asks for among them."""
        rng, found, size = self.rng, [], 0
        pool = sentences(write_document(rng, "train").text.split("\n\n"))
        while size < n_characters:
            source = rng.choice((self.prose or pool, self.reference, pool))
            found.append(" " + draw_needle(rng, "train").sentence if rng.random() < 0.3 else rng.choice(source))
            size += len(found[-1])
        return found

    def _needle(self) -> Needle:
        """A new needle; in half of them words are exchanged for others, so that every word has to be copied."""
        rng = self.rng
        needle = draw_needle(rng, "train")
        if rng.random() < 0.5:
            return needle
        rate, kept = rng.random() * 0.5, set(needle.key.split())
        words = [
            self._any_word(word) if rng.random() < rate and kept.isdisjoint(re.findall(r"\w+", word)) else word
            for word in needle.sentence.split(" ")
        ]
        sentence = " ".join(words)[:LONGEST]
        return needle if gives_away_classic(sentence) else Needle(sentence, needle.question, needle.key)

    def _any_word(self, instead_of: str) -> str:
        """A word from the prose, the reference or nowhere, with the capital and the punctuation of another."""
        source = self.rng.choice((self.prose or self.reference, self.reference, None))
        found = re.findall(r"[A-Za-z]+", self.rng.choice(source)) if source else []
        word = self.rng.choice(found) if found else coin_word(self.rng, "train")
        word = word.capitalize() if instead_of[:1].isupper() else word
        return re.sub(r"[\w'-]+", lambda _: word, instead_of, count=1)

    def _question(self, needle: Needle) -> str:
        if needle.key and self.rng.random() < 0.15:
            return self.rng.choice(("Which sentence mentions {}?", "What is said about {}?")).format(needle.key)
        return needle.question

    def _own_sentence(self, text: list[str]) -> Needle | None:
        """A sentence of the haystack itself, asked for by two of its words that no other sentence has together."""
        sentence = self.rng.choice(text).strip()
        words = sorted(set(re.findall(r"[A-Za-z]{5,}", sentence)), key=lambda word: (-len(word), word))[:4]
        if not 25 <= len(sentence) <= LONGEST or len(words) < 2:
            return None
        first, second = self.rng.sample(words, 2)
        if sum(first in other and second in other for other in text) != 1:
            return None
        return Needle(sentence, f"Which sentence mentions {first} and {second}?", first)

    def _needle_episode(self, n_tokens: int) -> list[Piece]:
        """A context with needles, and questions about some of them, in about ``n_tokens`` tokens (never more)."""
        rng = self.rng
        readings = 2 if n_tokens < 1000 and rng.random() < 0.12 else 1
        n_needles = 1 if rng.random() < 0.4 else rng.randrange(2, 2 + max(1, min(6, n_tokens // 60)))
        if readings == 2:
            n_needles = 1
        needles = list({n.key: n for n in (self._needle() for _ in range(n_needles))}.values())
        text = self._text(n_tokens)
        asked = rng.sample(needles, rng.randrange(1, len(needles) + 1))
        own = self._own_sentence(text[: max(1, len(text) // 3)]) if rng.random() < 0.2 and readings == 1 else None
        dialogue = self._dialogue([*asked, own] if own else asked, n_readings=readings)
        spent = sum(map(len, self._encode([p.text for p in dialogue if isinstance(p.text, str)]))) + 12
        budget = (n_tokens - spent) // readings
        context = self._context(text, needles, budget)
        if context is None or (own and not any(own.sentence in p.text for p in context if isinstance(p.text, str))):
            return self._tasks(3)
        opening, rest = dialogue[0], dialogue[1:]
        return [opening, *context, rest[0], *(context if readings == 2 else []), *rest[1:]]

    def _context(self, text: list[str], needles: list[Needle], budget: int) -> list[Piece] | None:
        """The haystack cut to fit with the needles into ``budget`` tokens, each needle at a sentence boundary."""
        rng = self.rng
        needle_tokens = sum(map(len, self._encode([n.sentence for n in needles]))) + 2 * len(needles)
        room = budget - needle_tokens
        if room < 0:
            return None
        kept: list[Piece] = []
        for sentence, ids in zip(text, self._encode(text), strict=True):
            if len(ids) > room:
                if rng.random() < 0.5:
                    kept.append(Piece(tuple(ids[:room]), HAYSTACK))
                break
            kept.append(Piece(sentence, HAYSTACK))
            room -= len(ids)
        placed: dict[int, list[Piece]] = {}
        for needle in needles:
            spot = rng.choice((0, len(kept), *(rng.randrange(len(kept) + 1) for _ in range(3))))
            layout = rng.choice(("\n{}\n", "\n{}\n", " {}"))
            placed.setdefault(spot, []).append(Piece(layout.format(needle.sentence), NEEDLE))
        pieces = list(placed.get(0, []))
        for spot, sentence in enumerate(kept, start=1):
            pieces += [sentence, *placed.get(spot, [])]
        return pieces

    def _dialogue(self, asked: list[Needle], n_readings: int) -> list[Piece]:
        """The pieces around the context: the opening, what follows it (before a second reading), questions, answers."""
        layout = self.rng.choices(("base", "chat", "plain"), (5, 2, 2))[0]
        first, *others = asked
        question = self._question(first)
        if layout == "plain":
            ask, answer = self.rng.choice(
                (("\n\nQ: {}", "\nA: "), ("\n\nQuestion: {}", "\nThe sentence is: "), ("\n\n{}", "\n"))
            )
            opening, reopening = BOS, ask.format(question) + "\n\n"
            asks = [ask.format(self._question(n)) + answer for n in others]
            tail = ask.format(question) + answer
        elif layout == "chat":
            opening, reopening = f"{BOS}{USER}\nCONTEXT: ", f"\n\nQUESTION: {question}\n\nCONTEXT: "
            asks = [f"{USER}\nQUESTION: {self._question(n)}{CHAT_SUFFIX}\n{ASSISTANT}\n" for n in others]
            tail = f"\n\nQUESTION: {question}{CHAT_SUFFIX}\n{ASSISTANT}\n"
        else:
            opening, reopening = f"{BOS}CONTEXT: ", f"\n\nQUESTION: {question}\n\nCONTEXT: "
            asks = [f"\n\nQUESTION: {self._question(n)}{BASE_SUFFIX}" for n in others]
            tail = f"\n\nQUESTION: {question}{BASE_SUFFIX}"
        pieces = [Piece(opening, FORMAT)]
        if n_readings == 2:
            pieces.append(Piece(reopening, FORMAT))
        pieces += [Piece(tail, FORMAT), Piece(first.sentence + EOS, ANSWER)]
        for ask, needle in zip(asks, others, strict=True):
            pieces += [Piece(ask, FORMAT), Piece(needle.sentence + EOS, ANSWER)]
        return pieces

    def _plain(self, n_tokens: int) -> list[Piece]:
        return [Piece(BOS, 0.0), *(Piece(sentence, PLAIN) for sentence in self._text(n_tokens))]

    def _tasks(self, n: int) -> list[Piece]:
        """Facts (as question or statement), reviews and entailments, each a text of its own."""
        rng, pieces = self.rng, []
        for _ in range(n):
            draw = rng.random()
            if draw < 0.3:
                pieces += self._choice(rng.choice(facts()))
            elif draw < 0.4:
                pieces += [Piece(BOS, 0.0), Piece(fact_statement(rng.choice(facts())), PLAIN)]
            else:
                pieces += self._choice((sentiment if draw < 0.55 else entailment)(rng, "train"))
        return pieces

    def _choice(self, choice: Choice) -> list[Piece]:
        return [Piece(BOS + choice.context, FORMAT), Piece(choice.answer + EOS, TASK)]

    def _repeated_chunk(self) -> list[Piece]:
        """Random tokens, then the same again: what starts induction heads."""
        chunk = tuple(self.rng.randrange(self.n_specials, self.d_vocab) for _ in range(self.rng.randrange(10, 120)))
        return [Piece(BOS, 0.0), Piece(chunk, 0.0), Piece(chunk * self.rng.randrange(1, 4), PLAIN)]


def prose_paragraphs(files: Sequence[Path]) -> list[str]:
    """The paragraphs of text files (reflowed to one line each), without those that resemble the classic needle."""
    found = []
    for file in files:
        for raw in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")):
            paragraph = re.sub(r"\s+", " ", raw).strip()
            if len(paragraph) >= 40 and not gives_away_classic(paragraph):
                found.append(paragraph)
    return found


def tokenizer_texts(prose: Sequence[Path], seed: str, n_documents: int = 1500) -> list[str]:
    """The texts that the zoo's tokenizer is trained on: the training side of everything a sequence is made of."""
    rng = random.Random(seed)
    texts = prose_paragraphs(prose) + list(reference.paragraphs("train"))
    for _ in range(n_documents):
        texts.append(write_document(rng, "train").text)
        if rng.random() < 0.1:  # coined words are many, and each is rare: they are to be spelled out, not learned
            needle = draw_needle(rng, "train")
            texts += [needle.sentence, f"CONTEXT: QUESTION: {needle.question}{BASE_SUFFIX}{CHAT_SUFFIX}"]
            texts += [sentiment(rng, "train").context, entailment(rng, "train").context, rng.choice(facts()).context]
    return texts
