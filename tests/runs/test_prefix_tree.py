"""Every prompt is read once from its first token to its last, and what prompts share is read once."""

from hypothesis import given
from hypothesis import strategies as st

from segregation.runs.prefix_tree import Piece, prefix_tree, tokens_read

prompts = st.lists(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=9).map(tuple), min_size=1, max_size=12)


def path(pieces: list[Piece], number: int) -> list[Piece]:
    before = pieces[number].before
    return [*(path(pieces, before) if before is not None else []), pieces[number]]


@given(prompts, st.sampled_from([0, 1, 3, 8]))
def test_the_pieces_of_a_prompt_are_the_prompt(prompts: list[tuple[int, ...]], forward: int) -> None:
    pieces = prefix_tree(prompts, forward)
    ended = {row: number for number, piece in enumerate(pieces) for row in piece.ends}
    assert sorted(row for piece in pieces for row in piece.ends) == list(range(len(prompts)))
    for row, number in ended.items():
        steps = path(pieces, number)
        assert [token for one in steps for token in prompts[one.prompt][one.start : one.stop]] == list(prompts[row])
        assert [one.start for one in steps] == [0, *(one.stop for one in steps[:-1])]


@given(prompts, st.sampled_from([0, 1, 3, 8]))
def test_no_more_is_paid_than_for_each_prompt_alone(prompts: list[tuple[int, ...]], forward: int) -> None:
    pieces = prefix_tree(prompts, forward)
    assert tokens_read(pieces) + forward * len(pieces) <= sum(map(len, prompts)) + forward * len(prompts)


@given(prompts)
def test_where_forwards_cost_nothing_no_token_is_read_twice(prompts: list[tuple[int, ...]]) -> None:
    distinct = {prompt[: stop + 1] for prompt in prompts for stop in range(len(prompt))}
    assert tokens_read(prefix_tree(prompts, 0)) == len(distinct)


def test_a_comb_of_depths_is_a_chain_with_a_branch_at_each() -> None:
    hay = tuple(range(100))
    depths = [(*hay[:at], 200, 201, *hay[at:]) for at in (20, 50, 80)]
    pieces = prefix_tree(depths, forward=5)
    assert [(piece.before, piece.start, piece.stop, piece.ends) for piece in pieces] == [
        (None, 0, 20, ()),
        (0, 20, 50, ()),
        (1, 50, 80, ()),
        (2, 80, 102, (2,)),
        (1, 50, 102, (1,)),
        (0, 20, 102, (0,)),
    ] or tokens_read(pieces) == 20 + 82 + 30 + 52 + 52
