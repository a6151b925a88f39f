import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segregation.errors import SampleError
from segregation.prompts.haystack import texts
from segregation.prompts.needle import (
    CLASSIC,
    PAPER_DEPTHS,
    PAPER_LENGTHS,
    Needle,
    needle_grid,
    sigmoid_depths,
)
from segregation.prompts.tokens import count_tokens, token_spans, tokens_of
from segregation.zoo.words import split_of

ANN = Needle("Ann's cat is called Zorbalax-7.", "What is Ann's cat called?")


def test_the_papers_grid_is_the_papers():
    assert [round(250 + i * (4096 - 250) / 9) for i in range(10)] == list(PAPER_LENGTHS)
    assert [round(i * 100 / 9) for i in range(10)] == list(PAPER_DEPTHS)
    assert "\n" + CLASSIC.sentence + "\n" == (
        "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
    )
    assert CLASSIC.question == "What is the best thing to do in San Francisco?"
    assert [round(depth, 3) for depth in sigmoid_depths(5)] == [0.669, 7.586, 50.0, 92.414, 99.331]


def test_the_papers_prompt_word_for_word(tokenizer):
    needle = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
    (sample,) = needle_grid(tokenizer, [400], [100], preset="paper")
    assert sample.prompt.startswith("CONTEXT: This is a story about")
    assert sample.prompt.endswith(
        f"\n{needle}\n\n\nQUESTION: What is the best thing to do in San Francisco?\n\n"
        "ANSWER: Here is the most relevant sentence in the context: "
    )
    assert sample.target == needle


def test_just_read_twice_repeats_the_block(tokenizer):
    once, twice = (needle_grid(tokenizer, [200], [50], readings=r)[0] for r in (1, 2))
    block = once.prompt.removesuffix("\n\nANSWER: Here is the most relevant sentence in the context: ")
    assert twice.prompt == once.prompt.replace(block, f"{block}\n\n{block}")
    assert [len(twice.spans[name]) for name in ("needle", "context", "question")] == [2, 2, 2]
    assert twice.text_of("needle") == (CLASSIC.sentence,) * 2
    assert twice.text_of("context") == once.text_of("context") * 2


def test_chat_prompt_goes_through_the_template_and_has_no_bos(tokenizer):
    base, chat = (needle_grid(tokenizer, [200], [50], layout=layout)[0] for layout in ("base", "chat"))
    assert chat.prompt.startswith("<|user|>\nCONTEXT: ")
    assert chat.prompt.endswith(
        f"\n\nQUESTION: {CLASSIC.question} Output the most relevant sentence in the context, word by word!\n"
        "<|assistant|>\n"
    )
    assert chat.text_of("context") == base.text_of("context")
    assert chat.id != base.id


@pytest.mark.parametrize(("depth", "where"), [(0, "start"), (100, "end")])
def test_needle_span_at_the_ends(tokenizer, depth, where):
    (sample,) = needle_grid(tokenizer, [150], [depth], needles=[ANN])
    (start, end), (first, last) = sample.spans["needle"][0], sample.spans["context"][0]
    assert sample.prompt[start:end] == ANN.sentence
    assert (start == first + 1) if where == "start" else (end == last - 1)
    assert sample.metadata["measured_depth"] == depth


def test_spans_find_their_tokens_in_the_prompt_the_model_reads(tokenizer):
    (sample,) = needle_grid(tokenizer, [150], [50], readings=2)
    ids = tokenizer(sample.prompt)["input_ids"]
    spans = token_spans(tokenizer, sample.prompt, add_special_tokens=True)
    assert len(ids) == len(spans)
    for part in sample.spans["needle"]:
        positions = tokens_of(spans, part)
        assert CLASSIC.sentence in tokenizer.decode([ids[i] for i in positions])
        assert 0 not in positions  # <bos>


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(60, 700),
    depth=st.one_of(st.integers(0, 100), st.floats(0, 100)),
    readings=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    haystack=st.sampled_from(["synthetic", "python-reference"]),
    needles=st.sampled_from(["classic", "synthetic", (ANN,)]),
    layout=st.sampled_from(["base", "chat"]),
)
def test_any_cell_has_its_needle_verbatim_within_its_length(
    tokenizer, length, depth, readings, seed, haystack, needles, layout
):
    try:
        (sample,) = needle_grid(
            tokenizer,
            [length],
            [depth],
            seed=seed,
            haystack=haystack,
            needles=needles,
            readings=readings,
            layout=layout,
        )
    except SampleError as error:  # a long synthetic needle in a short context: the message has the number to use
        least = int(re.search(r"at least (\d+)", str(error)).group(1))
        assert length < least
        return
    assert sample.prompt.count(sample.target) == readings
    assert sample.text_of("needle") == (sample.target,) * readings
    context = sample.text_of("context")[0]
    measured = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    assert measured == sample.metadata["context_tokens"]
    assert length - 2 <= measured <= length
    assert 0 <= sample.metadata["measured_depth"] <= 100
    before, _, after = context.partition(f"\n{sample.target}\n")
    if depth < 100:
        assert not before or re.search(r"""[.!?]["')\]]*$|\S$""", before)
        assert re.match(r"\s|$", after) or not before
    assert "<bos>" not in sample.prompt


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(80, 900),
    depths=st.lists(st.integers(0, 100), min_size=2, max_size=6, unique=True).map(sorted),
    seed=st.integers(0, 99),
)
def test_deeper_is_never_shallower_in_the_same_haystack(tokenizer, length, depths, seed):
    story = texts("story", [needle_free(seed)])  # one paragraph: the drawn start is always the same
    samples = needle_grid(tokenizer, [length], depths, haystack=story)
    starts = [sample.spans["needle"][0][0] for sample in samples]
    assert starts == sorted(starts)
    measured = [sample.metadata["measured_depth"] for sample in samples]
    assert all(b >= a - 300 / length for a, b in itertools.pairwise(measured))


def needle_free(seed):
    sentences = [f"Sentence {n} of story {seed} tells {'very ' * (n % 5)}little." for n in range(300)]
    return " ".join(sentences)


def test_pieces_that_run_over_newlines_still_fit(clumsy):
    for sample in needle_grid(clumsy, [120, 257], [0, 33, 50, 90, 100], n_per_cell=3, needles=[ANN]):
        tokens = len(clumsy(sample.text_of("context")[0], add_special_tokens=False)["input_ids"])
        assert sample.metadata["context_length"] - 4 <= tokens <= sample.metadata["context_length"]
        assert sample.text_of("needle") == (ANN.sentence,)
        assert 0 <= sample.metadata["measured_depth"] <= 100


def test_measured_depth_is_needle_start_over_the_rest(tokenizer):
    (sample,) = needle_grid(tokenizer, [300], [50])
    before, _, after = sample.text_of("context")[0].partition(f"\n{CLASSIC.sentence}\n")
    n_before, n_after = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, after))
    assert sample.metadata["measured_depth"] == pytest.approx(100 * n_before / (n_before + n_after), abs=0.5)


def test_a_sample_depends_on_its_cell_and_seed_alone(tokenizer):
    small = needle_grid(tokenizer, [200], [30], needles="synthetic")
    large = needle_grid(tokenizer, [100, 200], [0, 30, 70], needles="synthetic", n_per_cell=2)
    assert small[0] in large
    assert len({sample.id for sample in large}) == len(large) == 12
    assert len({sample.target for sample in large}) == 12
    assert all(split_of(sample.target) == "heldout" for sample in large)
    other = needle_grid(tokenizer, [200], [30], needles="synthetic", seed=1)
    assert other[0].prompt != small[0].prompt


def test_the_same_on_every_machine_and_python(bytewise):
    numbers = texts("numbers", [f"Number {n:02}." for n in range(100)])
    (sample,) = needle_grid(bytewise, [85], [60], haystack=numbers, needles=[ANN])
    assert sample.text_of("context") == (
        "Number 92.\n\nNumber 93.\nAnn's cat is called Zorbalax-7.\n\n\nNumber 94.\n\nNumber 95.\n\nNumb",
    )
    assert sample.id == "numbers/99db3446/85-tokens/60%/base-x1/seed-0/0"


def test_the_count_is_exact_where_every_cut_can_be_made(bytewise):
    samples = needle_grid(bytewise, [150, 251, 777], [0, 3.5, 50, 99, 100])
    for sample in samples:
        assert len(sample.text_of("context")[0].encode()) == sample.metadata["context_length"]


def test_a_number_means_the_same_whatever_its_type(tokenizer):
    assert needle_grid(tokenizer, [200], [50.0, 12.5]) == needle_grid(tokenizer, [200], [50, np.float64(12.5)])


@settings(max_examples=40, deadline=None)
@given(
    room=st.integers(1, 300),
    depth=st.one_of(st.integers(0, 100), st.floats(0, 100)),
    copies=st.integers(1, 9),
    readings=st.integers(1, 2),
    seed=st.integers(0, 10**6),
)
def test_every_copy_is_there_and_the_length_stays_exact(bytewise, room, depth, copies, readings, seed):
    line = f"\n{ANN.sentence}\n"
    length = copies * len(line) + room  # one token a byte
    (sample,) = needle_grid(
        bytewise, [length], [depth], seed=seed, needles=[ANN], copies=copies, readings=readings, haystack=NUMBERS
    )
    assert sample.text_of("needle") == (ANN.sentence,) * copies * readings
    assert sample.prompt.count(ANN.sentence) == copies * readings
    assert len(sample.text_of("context")[0]) == length == sample.metadata["context_tokens"]
    assert sample.metadata["copies"] == copies
    hay = sample.text_of("context")[0].replace(line, "")
    (alone,) = needle_grid(bytewise, [len(line) + room], [depth], seed=seed, needles=[ANN], haystack=NUMBERS)
    if copies == 1:
        assert hay == alone.text_of("context")[0].replace(line, "")
    starts = [start for start, _ in sample.spans["needle"]]
    assert starts == sorted(starts)
    last = sample.prompt[sample.spans["needle"][-1][1] : sample.spans["question"][-1][0]]
    assert sample.metadata["distance"] == len(last)


NUMBERS = texts("numbers", [f"Number {n:02}." for n in range(100)])


def test_copies_are_spread_evenly_up_to_the_depth_of_a_lone_needle(bytewise):
    line = f"\n{ANN.sentence}\n"
    one, four = (
        needle_grid(bytewise, [n * len(line) + 400], [80], needles=[ANN], copies=n, haystack=NUMBERS)[0] for n in (1, 4)
    )
    before = four.text_of("context")[0].split(line)
    lengths = [sum(map(len, before[: i + 1])) for i in range(4)]
    for at, goal in zip(lengths, (80, 160, 240, 320), strict=True):
        assert goal - len("\n\nNumber 00.") < at <= goal  # the end of the sentence before
    assert four.metadata["measured_depth"] == pytest.approx(one.metadata["measured_depth"], abs=3)
    assert abs(four.metadata["distance"] - one.metadata["distance"]) < 13


def test_copies_at_either_end_stand_together_or_reach_the_question(bytewise):
    line = f"\n{ANN.sentence}\n"
    start, end = (
        needle_grid(bytewise, [3 * len(line) + 90], [depth], needles=[ANN], copies=3, haystack=NUMBERS)[0].text_of(
            "context"
        )[0]
        for depth in (0, 100)
    )
    assert start.startswith(line * 3)
    assert end.endswith(line) and not end.startswith(line)


def test_a_decoy_lies_in_the_longest_stretch_without_a_needle(bytewise):
    (sample,) = needle_grid(bytewise, [600], [60], needles=[ANN], copies=3)
    (start, end) = sample.spans["decoy"][0]
    assert end - start == len(ANN.sentence)
    assert all(end <= a or b <= start for a, b in sample.spans["needle"])
    edges = [0, *(edge for span in sample.spans["needle"] for edge in span), sample.spans["context"][0][1]]
    assert max(b - a for a, b in zip(edges[::2], edges[1::2], strict=True)) > 2 * (end - start)


def test_one_copy_leaves_the_ids_of_samples_as_they_were(tokenizer):
    plain, one, two = (needle_grid(tokenizer, [200], [50], **kind)[0] for kind in ({}, {"copies": 1}, {"copies": 2}))
    assert one == plain and plain.id == "synthetic/classic/200-tokens/50%/base-x1/seed-0/0"
    assert two.id == "synthetic/classic/200-tokens/50%/base-x1/seed-0/2-copies/0"


def test_the_distance_counts_from_the_last_needle_to_the_last_question(tokenizer):
    (sample,) = needle_grid(tokenizer, [200], [100], readings=2)
    assert sample.metadata["distance"] == count_tokens(tokenizer, "\n\n\nQUESTION: ")


def test_own_needles_take_turns_within_a_cell(tokenizer):
    needles = [
        Needle(f"The door code of house {n} is {n}{n}.", f"What is the door code of house {n}?") for n in range(4)
    ]
    samples = needle_grid(tokenizer, [120], [50], needles=needles, n_per_cell=4)
    assert {sample.target for sample in samples} == {needle.sentence for needle in needles}


def test_the_buffer_leaves_the_papers_shortest_column_little_room(tokenizer):
    samples = needle_grid(tokenizer, [250], PAPER_DEPTHS, preset="paper", needles=[ANN])
    assert {sample.metadata["context_tokens"] for sample in samples} <= {49, 50}
    assert {sample.metadata["context_length"] for sample in samples} == {250}
    assert len({round(sample.metadata["measured_depth"]) for sample in samples}) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_lengths": [20]}, r"needle has \d+ tokens, the context 20; use a context length of at least \d+"),
        ({"context_lengths": [230], "preset": "paper"}, "the context 30;"),
        ({"context_lengths": []}, "at least one value"),
        ({"context_lengths": [100, 100]}, "each once"),
        ({"depth_percents": [101]}, r"0 \(start\) .. 100 \(end\), got \[101\]"),
        ({"n_per_cell": 0}, "n_per_cell must be at least 1"),
        ({"readings": 0}, "at least 1, got 0"),
        ({"copies": 0}, "copies counts how often the needle stands in the context, at least 1, got 0"),
        ({"copies": 9}, r"the 9 copies of the needle have \d+ tokens, the context 200; use a context length of at"),
        ({"needles": []}, "empty sequence"),
        ({"needles": [Needle("", "Who?")]}, "a word in it"),
        ({"needles": [Needle("...", "Who?")]}, "a word in it"),
        ({"needles": [Needle("Ann has a cat.", " ")]}, "a question"),
        ({"needles": [Needle("\nAnn has a cat.\n", "Who?")]}, "no spaces or newlines"),
        ({"haystack": texts("t", [CLASSIC.sentence, "And more text."])}, "already has the needle"),
    ],
)
def test_what_cannot_be_built_is_refused_in_plain_words(tokenizer, arguments, message):
    arguments = {"context_lengths": [200], "depth_percents": [50], **arguments}
    with pytest.raises(SampleError, match=message):
        needle_grid(tokenizer, **arguments)


def test_chat_without_a_template_or_with_one_that_rewrites_is_refused(tokenizer, clumsy, monkeypatch):
    with pytest.raises(SampleError, match="chat template"):
        needle_grid(clumsy, [200], [50], layout="chat")
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0]['content'] | upper }}")
    with pytest.raises(SampleError, match="changes the text of a turn"):
        needle_grid(tokenizer, [200], [50], layout="chat")


def test_synthetic_needles_can_be_kept_short(tokenizer):
    sizes = (None, 50)
    longest = [
        max(
            count_tokens(tokenizer, sample.target)
            for sample in needle_grid(
                tokenizer, (250,), (0, 50, 100), needles="synthetic", n_per_cell=8, max_needle_tokens=size
            )
        )
        for size in sizes
    ]
    assert longest[0] > 50 >= longest[1]


def test_a_limit_that_no_needle_might_fit_is_refused(tokenizer):
    with pytest.raises(SampleError, match="none of 300 synthetic needles has at most max_needle_tokens=5 tokens"):
        needle_grid(tokenizer, (150,), (0,), needles="synthetic", max_needle_tokens=5)
