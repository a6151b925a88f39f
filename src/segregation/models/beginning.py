"""Whether prompts begin with the BOS token, once, where the model was trained on text that does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segregation.prompts.render import as_user_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED_WITH_BOS: Mapping[str, bool] = {
    "recurrentgemma": True,
    "jamba": True,
    "lfm2": True,
    "llama": True,
    "qwen3": False,
    "qwen3_next": False,
    "qwen3_5": False,
    "mamba": False,
}
"""By family, whether its published models read BOS before a text; of the families that are left out it is not known."""


@dataclass(frozen=True)
class Beginning:
    """How prompts begin, as token ids.

    Attributes:
        bos: the id of BOS; ``None`` where neither the tokenizer nor the config has one.
        plain: how many BOS a plain prompt begins with.
        chat: how many BOS a chat prompt begins with; ``None`` without a chat template.
        notes: what is doubtful about that, in words; empty where nothing is.
    """

    bos: int | None
    plain: int
    chat: int | None
    notes: list[str]


def beginning(tokenizer: "PreTrainedTokenizerBase", config: Any, family: str) -> Beginning:
    """How a model's prompts begin, and what is doubtful about it."""
    own: Any = tokenizer.bos_token_id
    bos: int | None = config.bos_token_id if own is None else own
    plain = leading(tokenizer("a")["input_ids"], bos)
    chat = leading(tokenizer(as_user_turn(tokenizer, "a"))["input_ids"], bos) if tokenizer.chat_template else None
    notes: list[str] = []
    if None not in (own, config.bos_token_id) and own != config.bos_token_id:
        notes.append(f"BOS is {own} in the tokenizer and {config.bos_token_id} in the config")
    for kind, count in (("plain", plain), ("chat", chat)):
        if count is None:
            continue
        if count > 1:
            notes.append(f"{kind} prompts begin with {count} BOS")
        elif count == 0 and bos is not None and TRAINED_WITH_BOS.get(family):
            notes.append(f"{kind} prompts begin without BOS, which the models of this family were trained with")
        elif count == 1 and TRAINED_WITH_BOS.get(family) is False:
            notes.append(f"{kind} prompts begin with BOS, which the models of this family were not trained with")
    if chat is not None:
        template: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], add_generation_prompt=True, return_dict=True
        )
        if chat != (alone := leading(template["input_ids"], bos)):
            notes.append(f"chat prompts begin with {chat} BOS, where the chat template alone gives {alone}")
    return Beginning(bos, plain, chat, notes)


def leading(ids: list[int], token: int | None) -> int:
    """How often a token stands at the beginning.

    >>> leading([2, 2, 7, 2], 2), leading([7], None)
    (2, 0)
    """
    return next((i for i, one in enumerate(ids) if one != token), len(ids))
