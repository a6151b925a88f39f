"""Training sequences: exact lengths, tokens of the whole text, answers that stand in their context."""

import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from segregation.zoo import corpus as module
from segregation.zoo.corpus import ANSWER, Corpus, Piece, prose_paragraphs, sentences
from segregation.zoo.needles import CLASSIC, gives_away_classic
from segregation.zoo.tokenizer import SPECIALS, train_tokenizer

WEIGHTS = Path(module.__file__).parent / "weights"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(WEIGHTS / "tiny-jamba" / "tokenizer.json"))


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prose") / "prose.txt"
    lines = [f"The council met on day {n} and agreed on nothing at all, as ever before." for n in range(300)]
    file.write_text("\n\n".join([*lines, "A visit to San Francisco was put off again, to the regret of everybody."]))
    return file


def test_sequences_are_full_and_never_give_the_classic_needle_away(tokenizer: Tokenizer, prose: Path) -> None:
    corpus = Corpus(tokenizer, [prose], "test")
    for _ in range(60):
        ids, weights = corpus.sequence(400)
        assert ids.shape == weights.shape == (400,)
        assert not gives_away_classic(tokenizer.decode(list(ids)))


def test_answers_stand_in_the_context_before_them(tokenizer: Tokenizer, prose: Path) -> None:
    corpus = Corpus(tokenizer, [prose], "answers")
    checked = 0
    for _ in range(80):
        ids, weights = corpus.sequence(500)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], weights == ANSWER, [0]])))
        for start, end in edges.reshape(-1, 2):
            answer = tokenizer.decode(list(ids[start:end])).strip()
            before = tokenizer.decode(list(ids[:start]))
            if end < 500:
                assert answer in before
                checked += 1
    assert checked > 60


def test_pieces_encode_to_the_tokens_of_the_whole(tokenizer: Tokenizer, prose: Path) -> None:
    corpus = Corpus(tokenizer, [prose], "pieces")
    for _ in range(40):
        pieces = corpus._plain(200)
        ids: list[int] = []
        corpus._add(pieces, ids, [])
        whole = "".join(piece.text for piece in pieces if isinstance(piece.text, str))
        assert ids == tokenizer.encode(whole, add_special_tokens=False).ids


def test_streams_with_other_seeds_differ_and_the_same_seed_repeats(tokenizer: Tokenizer, prose: Path) -> None:
    first, again, other = (Corpus(tokenizer, [prose], seed).sequence(200)[0] for seed in ("a", "a", "b"))
    assert (first == again).all()
    assert (first != other).any()


def test_prose_that_resembles_the_classic_needle_is_dropped(prose: Path) -> None:
    kept = prose_paragraphs([prose])
    assert len(kept) == 300
    assert not any("Francisco" in paragraph for paragraph in kept)


def test_sentences_join_to_the_text() -> None:
    paragraphs = ["One is here. Two; three!", "Four: five? Six."]
    assert "".join(sentences(paragraphs)) == "\n\n".join(paragraphs)


def test_repeated_chunks_repeat(tokenizer: Tokenizer, prose: Path) -> None:
    corpus = Corpus(tokenizer, [prose], "chunks")
    _, first, again = corpus._repeated_chunk()
    assert isinstance(first, Piece)
    assert isinstance(again.text, tuple)
    assert again.text[: len(first.text)] == first.text


@pytest.mark.parametrize(
    "text", [CLASSIC.sentence, "tabs\tand  spaces \n\n lines", "zero ÿ☃ snow", "a1b22c333", "x" * 50]
)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_newlines_and_digits_are_tokens_of_their_own() -> None:
    tokenizer = train_tokenizer(["12 34 12\n\n34 words\n\nwords"] * 20, d_vocab=300)
    tokens = tokenizer.encode("12\n\n34", add_special_tokens=False).tokens
    assert [bool(re.search(r"\d", token)) for token in tokens] == [True, True, False, False, True, True]
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == [0, 1, 2, 3, 4]


def test_exchanged_words_keep_the_key(tokenizer: Tokenizer, prose: Path) -> None:
    corpus = Corpus(tokenizer, [prose], "exchange")
    needles = [corpus._needle() for _ in range(300)]
    for needle in needles:
        if len(needle.sentence) < module.LONGEST:  # a longer one is cut, perhaps within its key
            assert all(word in needle.sentence for word in needle.key.split() if word[0].isupper())
