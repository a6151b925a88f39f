"""Which ways of decoding a family gets right, and how long a prompt may be."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from segregation.errors import ModelError
from segregation.models.family import Family


def check_decoding(family: Family, config: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse settings of ``generate`` that give silently wrong tokens with recurrent states.

    Raises:
        ModelError: beams where part of the state lives on modules, or several tokens fed to a filled cache.
    """

    def setting(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    beams = setting("num_beams") or 1
    if beams > 1 and "beams" in family.cannot:
        raise ModelError(f"num_beams={beams} is wrong on {family.name}: {family.cannot['beams']}; use num_beams=1")
    for name in ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model"):
        if setting(name) is not None:
            raise ModelError(
                f"{name} feeds several tokens to a filled cache, which is not checked under plans; leave it out"
            )


def check_padding(mask: Any) -> None:
    """Refuse a batch padded at the right: new tokens would come after the padding.

    Raises:
        ModelError: a row whose last token is padding.
    """
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask[:, -1].all()):
        rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
        raise ModelError(
            f"generation goes on after the last token, which is padding in the rows {rows}; pad at the left "
            '(tokenizer.padding_side = "left")'
        )


def check_length(name: str, max_positions: int | None, prompt_tokens: int, new_tokens: int) -> None:
    """Refuse a prompt that does not fit with its new tokens.

    Raises:
        ModelError: more positions than the model takes, with the numbers.
    """
    if max_positions is not None and prompt_tokens + new_tokens > max_positions:
        raise ModelError(
            f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones need {prompt_tokens + new_tokens} "
            f"positions, but {name} takes {max_positions}; shorten the prompt to "
            f"{max(max_positions - new_tokens, 0)} tokens, or ask for fewer new ones"
        )


def check_prompt_lengths(lengths: Tensor, tokens: Tensor) -> None:
    """Refuse prompt lengths that are not one for each row, each a part of its row's ``tokens`` (padding not counted).

    Raises:
        ModelError: another number of lengths, or a length outside 1..tokens, with its row.
    """
    if lengths.shape != tokens.shape:
        raise ModelError(
            f"prompt_lengths needs one length for each of the {len(tokens)} rows, got {lengths.tolist()}; "
            "give a list with the prompt's tokens in each row"
        )
    for row in ((lengths < 1) | (lengths > tokens)).nonzero().flatten().tolist():
        raise ModelError(
            f"prompt_lengths of row {row} must be 1 to its {int(tokens[row])} tokens (padding not counted), got "
            f"{lengths[row].item()}; count the prompt's tokens without padding, special tokens included"
        )
