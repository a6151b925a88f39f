"""Where needles go in their haystack: at the ends of sentences, in a context of an exact number of tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from segregation.errors import SampleError
from segregation.prompts.sample import Span
from segregation.prompts.tokens import Tokenizer, count_tokens, token_spans, tokens_of

_SENTENCE_END = re.compile(r"""[.!?]["')\]”’]*(?=\s|$)|(?<=\S)(?=\s*\n)""")
_ATTEMPTS = 8


@dataclass(frozen=True)
class Placed:
    """A haystack with a needle in it, once or several times.

    Attributes:
        context: the text.
        needles: where the sentence stands in it, in characters; every copy, in order.
        tokens: tokens of the context by itself (T).
        measured_depth: haystack tokens before the last copy / (T - n) in percent, n being the tokens of all copies with
            their newlines.
    """

    context: str
    needles: tuple[Span, ...]
    tokens: int
    measured_depth: float


def place(
    tokenizer: Tokenizer, haystack: str, sentence: str, *, max_tokens: int, depth_percent: float | int, copies: int = 1
) -> Placed:
    """Cut a haystack so that it has ``max_tokens`` tokens with the needle, and put the needle in.

    The haystack is cut between two tokens, as in arXiv 2510.19861, so it may end within a sentence. The needle, on a
    line of its own, goes to the end of the sentence before ``depth_percent`` of the haystack's tokens (to the start if
    there is none); 100 appends it. Copies are spread evenly up to there: of n, the i-th goes to i / n of that depth.
    Tokens are counted on the finished context, never above ``max_tokens``, and below it only where no cut of the
    haystack gives that count exactly (a token or two).

    Raises:
        SampleError: ``max_tokens`` leaves no token of haystack, or the haystack is too short or has the needle already.
    """
    line = f"\n{sentence}\n"
    n_needle = copies * count_tokens(tokenizer, line)
    room = max_tokens - n_needle
    if room < 1:
        has = "the needle has" if copies == 1 else f"the {copies} copies of the needle have"
        raise SampleError(
            f"a context must hold its needle and at least one token of haystack: {has} {n_needle} tokens, "
            f"the context {max(max_tokens, 0)}; use a context length of at least {n_needle + 1} (plus any buffer)"
        )
    spans = token_spans(tokenizer, haystack)
    if len(spans) < room:
        raise SampleError(f"a haystack of {len(spans)} tokens is too short to leave {room} beside its needle")
    if sentence in haystack:
        raise SampleError(f"the haystack already has the needle {sentence!r}; use another haystack or needle")
    depths = [depth_percent * copy / copies for copy in range(1, copies + 1)]
    goals = [spans[min(int(room * depth / 100), room - 1)][0] for depth in depths]
    sentence_ends = [0, *(match.end() for match in _SENTENCE_END.finditer(haystack))]
    ends = [max(end for end in sentence_ends if end <= goal) for goal in goals]

    def cut(n_tokens: int) -> Placed:
        kept = haystack[: spans[n_tokens - 1][1]]
        starts = [len(kept) if depth == 100 else min(end, len(kept)) for depth, end in zip(depths, ends, strict=True)]
        return _inserted(tokenizer, kept, line, starts)

    best: Placed | None = None
    n_tokens = room
    for _ in range(_ATTEMPTS):
        placed = cut(n_tokens)
        if placed.tokens <= max_tokens and (best is None or placed.tokens > best.tokens):
            best = placed
        step = max_tokens - placed.tokens
        if step == 0 or not 1 <= n_tokens + step <= len(spans):
            break
        n_tokens += step
    while best is None:  # counts that jump over max_tokens both ways: walk down to the first that fits
        if n_tokens <= 1:
            raise SampleError(f"no cut of the haystack fits {max_tokens} tokens with its needle; use a longer context")
        n_tokens -= 1
        best = placed if (placed := cut(n_tokens)).tokens <= max_tokens else None
    return best


def _inserted(tokenizer: Tokenizer, kept: str, line: str, starts: Sequence[int]) -> Placed:
    """The line put in at every one of these places of the haystack, which are in order."""
    context = "".join(kept[a:b] + line for a, b in zip([0, *starts], starts, strict=False)) + kept[starts[-1] :]
    lines = [(start + i * len(line), start + (i + 1) * len(line)) for i, start in enumerate(starts)]
    found = token_spans(tokenizer, context)
    taken = [tokens_of(found, part) for part in lines]
    of_needles = {token for tokens in taken for token in tokens}
    rest = len(found) - len(of_needles)
    before = sum(token not in of_needles for token in range(taken[-1][0]))
    needles = tuple((start + 1, end - 1) for start, end in lines)
    return Placed(context, needles, len(found), 100 * before / rest if rest else 0.0)
