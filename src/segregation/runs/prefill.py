"""How prompts are read: in one padded forward, or piece by piece, going on from what other prompts have in common."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from segregation.interventions.apply import enter
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepHeads, Plan
from segregation.models.checks_outcome import Tolerances, ask, clamps_prefill
from segregation.models.checks_running import SLOW
from segregation.models.hybrid import HybridModel, Intervention
from segregation.models.memory import Memory
from segregation.prompts.spans import TokenSpans
from segregation.runs.prefix_tree import Piece, Prompt

(_GOES_ON,) = [question for question in SLOW if question.name == "several tokens may follow a cache"]
_MEASURED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def prefill(
    model: HybridModel,
    prompts: Sequence[Prompt],
    plans: Sequence[Plan] = (),
    spans: Sequence[TokenSpans | None] = (),
    watch: Intervention | None = None,
    read: Sequence[int] = (),
) -> Memory:
    """What the model remembers after all tokens of each prompt but the last, each row under its plan.

    ``read`` says, per prompt, after how many of its tokens instead; the phases stay those of the whole prompt.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    seen = torch.tensor(list(read), device=model.device) if read else lengths - 1
    ids, mask = left_padded([prompt[:n] for prompt, n in zip(prompts, seen.tolist(), strict=True)], model.device)
    cache = model.new_cache()

    def forward() -> None:
        model.reset()
        model.run.start(lengths, spans)
        model.hf_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_positions(ids, mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    edited = enter(model, *plans) if plans else model
    (edited if watch is None else watch.enter(edited)).interleave(forward)
    return model.remember(cache, seen)


def prefill_pieces(
    model: HybridModel, prompts: Sequence[Prompt], pieces: Sequence[Piece], plan: Plan
) -> dict[int, Memory]:
    """What the model remembers after each prompt, as ``prefix_tree`` cut it, under one plan; a memory of one row each.

    The prompts are here without their last token. Only for models that ``goes_on`` and plans that ``acts_alike``.
    """
    last_use = {piece.before: number for number, piece in enumerate(pieces)}
    edited = enter(model, plan) if plan.rules else model
    held: dict[int, Memory] = {}
    found: dict[int, Memory] = {}
    for number, piece in enumerate(pieces):
        before = None if piece.before is None else held[piece.before]
        memory = _read_piece(model, edited, prompts[piece.prompt], piece, before)
        held[number] = memory
        found.update(dict.fromkeys(piece.ends, memory))
        for done in [kept for kept in held if last_use.get(kept, -1) <= number]:
            del held[done]
    return found


def _read_piece(model: HybridModel, edited: HybridModel, prompt: Prompt, piece: Piece, before: Memory | None) -> Memory:
    device = model.device
    ids = torch.tensor([prompt[piece.start : piece.stop]], device=device)
    whole, first = torch.tensor([len(prompt) + 1], device=device), torch.zeros(1, dtype=torch.long, device=device)
    memory = None if before is None else before.select(first)  # layers update their states in place
    kept: list[Memory] = []

    def forward() -> None:
        model.reset()
        cache = model.new_cache() if memory is None else model.recall(memory)
        model.run.start(whole)
        model.hf_model(
            input_ids=ids,
            position_ids=torch.arange(piece.start, piece.stop, device=device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        kept.append(model.remember(cache, first + piece.stop))

    edited.interleave(forward)
    return kept[0]


def goes_on(model: HybridModel) -> bool:
    """Whether several tokens fed to a filled cache give what one forward gives; measured once where no check says.

    Not where one token is read by another function than several are (``clamps_prefill``), since a piece may be of one.
    """
    if clamps_prefill(model):
        return False
    for check in model.description.get("self_checks", ()):
        if check["name"] == _GOES_ON.name:
            return check["outcome"] == "pass"
    if model.hf_model not in _MEASURED:
        _MEASURED[model.hf_model] = not ask(model, _GOES_ON, Tolerances.of(model)).failed
    return _MEASURED[model.hf_model]


def acts_alike(plan: Plan) -> bool:
    """Whether a plan does the same to tokens that prompts have in common, up to float noise.

    Rules that name heads or mixers do. Those that name tokens may not, and those that choose heads by a score decide
    otherwise where two scores are as near as float noise.
    """
    return all(
        isinstance(rule, AblateHeads | KeepHeads | AblateMixer) or Phase.PREFILL not in rule.during
        for rule in plan.rules
    )


def left_padded(prompts: Sequence[Prompt], device: torch.device | None) -> tuple[Tensor, Tensor | None]:
    """Token ids with shorter prompts padded at the left, and their mask; ``None`` where nothing is padded.

    >>> ids, mask = left_padded([(5, 6), (7,)], None)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), None if bool(mask.all()) else mask.to(device)


def _positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return (mask.cumsum(-1) - 1).clamp(min=0)
