"""Where a needle goes in its haystack: at the end of a sentence, in a context of an exact number of tokens."""

import re
from dataclasses import dataclass

from segregation.errors import SampleError
from segregation.prompts.sample import Span
from segregation.prompts.tokens import Tokenizer, count_tokens, token_spans, tokens_of

_SENTENCE_END = re.compile(r"""[.!?]["')\]”’]*(?=\s|$)|(?<=\S)(?=\s*\n)""")
_ATTEMPTS = 8


@dataclass(frozen=True)
class Placed:
    """A haystack with a needle in it.

    Attributes:
        context: the text.
        needle: where the sentence stands in it, in characters.
        tokens: tokens of the context by itself (T).
        measured_depth: needle start / (T - n) in percent, in tokens, n being the needle's tokens with its newlines.
    """

    context: str
    needle: Span
    tokens: int
    measured_depth: float


def place(tokenizer: Tokenizer, haystack: str, sentence: str, *, max_tokens: int, depth_percent: float | int) -> Placed:
    """Cut a haystack so that it has ``max_tokens`` tokens with the needle, and put the needle in.

    The haystack is cut between two tokens, as in arXiv 2510.19861, so it may end within a sentence. The needle, on a
    line of its own, goes to the end of the sentence before ``depth_percent`` of the haystack's tokens (to the start if
    there is none); 100 appends it. Tokens are counted on the finished context, never above ``max_tokens``, and below
    it only where no cut of the haystack gives that count exactly (a token or two).

    Raises:
        SampleError: ``max_tokens`` leaves no token of haystack, or the haystack is too short or has the needle already.
    """
    line = f"\n{sentence}\n"
    n_needle = count_tokens(tokenizer, line)
    room = max_tokens - n_needle
    if room < 1:
        raise SampleError(
            f"a context must hold its needle and at least one token of haystack: the needle has {n_needle} tokens, "
            f"the context {max(max_tokens, 0)}; use a context length of at least {n_needle + 1} (plus any buffer)"
        )
    spans = token_spans(tokenizer, haystack)
    if len(spans) < room:
        raise SampleError(f"a haystack of {len(spans)} tokens is too short to leave {room} beside its needle")
    if sentence in haystack:
        raise SampleError(f"the haystack already has the needle {sentence!r}; use another haystack or needle")
    goal = spans[min(int(room * depth_percent / 100), room - 1)][0]
    at = max((end for match in _SENTENCE_END.finditer(haystack) if (end := match.end()) <= goal), default=0)

    def cut(n_tokens: int) -> Placed:
        kept = haystack[: spans[n_tokens - 1][1]]
        start = len(kept) if depth_percent == 100 else min(at, len(kept))
        context = kept[:start] + line + kept[start:]
        found = token_spans(tokenizer, context)
        taken = tokens_of(found, (start, start + len(line)))
        rest = len(found) - len(taken)
        span = (start + 1, start + 1 + len(sentence))
        return Placed(context, span, len(found), 100 * taken[0] / rest if rest else 0.0)

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
