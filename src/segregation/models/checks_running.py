"""Does a run give the same after other runs, step by step as at once, and from a copy of what it remembers?"""

import torch
from torch import Tensor

from segregation.models.checks_outcome import (
    LONG,
    Question,
    clamps_prefill,
    generated,
    largest_gap,
    logits,
    prompts,
    worst,
)
from segregation.models.hybrid import HybridModel
from segregation.shapes import Tokens


def _leak(model: HybridModel) -> float:
    """A one-token prompt, which leaves least room for a state to be set anew; tokens that differ count 1."""
    ids = prompts(model)
    first, other = ids[:1, :1], ids[1:]
    runs = []
    with torch.no_grad():
        for prompt in (first, other, first):
            runs.append(model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False))
            runs.append(logits(model, prompt))
    tokens = float((runs[0] != runs[4]).any())
    return worst([tokens, float((runs[1] - runs[5]).abs().max())])


def _fork(model: HybridModel) -> float:
    """Where one token is read by another function than several are, the fork is compared with no fork instead."""
    ids = prompts(model)[:1]
    whole = (_in_pieces(model, ids, [LONG - 1, 1]) if clamps_prefill(model) else logits(model, ids))[:, -1]
    gaps = []
    with torch.no_grad():
        model.reset()
        cache = model.new_cache()
        model.hf_model(ids[:, :-1], past_key_values=cache, use_cache=True)
        prefix = model.remember(cache, torch.tensor([LONG - 1], device=ids.device))
        for _ in range(2):
            fork = prefix.select(torch.zeros(2, dtype=torch.long, device=ids.device))
            position = torch.full((2, 1), LONG - 1, device=ids.device)
            step = ids[:, -1:].expand(2, 1)
            found = model.hf_model(step, past_key_values=model.recall(fork), position_ids=position).logits
            gaps.append(float((found[:, -1].float() - whole).abs().max()))
    return worst(gaps)


def _same_twice(model: HybridModel) -> float:
    ids = prompts(model)
    (tokens, first), (others, again) = generated(model, ids), generated(model, ids)
    return worst([float((tokens != others).any()), float((first - again).abs().max())])


def _prefill_against_decode(model: HybridModel) -> float:
    ids = prompts(model)[:1]
    return float((logits(model, ids) - _in_pieces(model, ids, [1] * LONG)).abs().max())


def _cache_against_none(model: HybridModel) -> float:
    ids = prompts(model)[:1]
    return largest_gap(generated(model, ids, use_cache=True), generated(model, ids, use_cache=False))


def _piece_after_cache(model: HybridModel) -> float:
    ids = prompts(model)[:1]
    return float((logits(model, ids) - _in_pieces(model, ids, [LONG // 2, LONG - LONG // 2])).abs().max())


def _in_pieces(model: HybridModel, ids: Tokens, lengths: list[int]) -> Tensor:
    """The logits of these tokens, so many at a time fed to one cache."""
    found: list[Tensor] = []
    with torch.no_grad():
        model.reset()
        cache = model.new_cache()
        for piece, places in zip(ids.split(lengths, dim=1), torch.arange(LONG).split(lengths), strict=True):
            positions = places[None].to(ids.device)
            out = model.hf_model(piece, past_key_values=cache, position_ids=positions, use_cache=True)
            found.append(out.logits.float())
    return torch.cat(found, dim=1)


QUICK = (
    Question("a run is the same after another run", _leak, "repeat", "refused"),
    Question("two forks of a prefix equal one forward", _fork, "noise", "fork"),
)
SLOW = (
    Question(
        "the same run twice gives the same",
        _same_twice,
        "nothing",
        "reported",
        meaning="this is how far two equal runs differ",
    ),
    Question(
        "one forward equals one token at a time", _prefill_against_decode, "noise", "refused", known=clamps_prefill
    ),
    Question("decoding with a cache equals without", _cache_against_none, "noise", "refused", known=clamps_prefill),
    Question(
        "several tokens may follow a cache",
        _piece_after_cache,
        "noise",
        "reported",
        meaning="a prompt's later tokens go in one by one here, as several at once lose part of the state",
    ),
)
