"""How a context and a question become a prompt: base, chat and just-read-twice layouts of arXiv 2510.19861."""

from segregation.errors import SampleError
from segregation.prompts.tokens import Tokenizer

BLOCK = "CONTEXT: {context}\n\nQUESTION: {question}"
BASE_SUFFIX = "\n\nANSWER: Here is the most relevant sentence in the context: "
CHAT_SUFFIX = " Output the most relevant sentence in the context, word by word!"
TWICE_SEPARATOR = "\n\n"


def block(context: str, question: str, *, readings: int = 1) -> str:
    """The CONTEXT/QUESTION block, repeated ``readings`` times (2 is "just read twice").

    Raises:
        SampleError: fewer than one reading.

    >>> block("The sky is blue.", "What is blue?", readings=2).count("CONTEXT")
    2
    """
    if readings < 1:
        raise SampleError(f"readings counts how often the context is read, at least 1, got {readings}")
    return TWICE_SEPARATOR.join([BLOCK.format(context=context, question=question)] * readings)


def base_prompt(context: str, question: str, *, readings: int = 1) -> str:
    """The prompt for a base model, which continues it with the needle.

    >>> base_prompt("The sky is blue.", "What is blue?")[-12:]
    'he context: '
    """
    return block(context, question, readings=readings) + BASE_SUFFIX


def chat_turn(context: str, question: str, *, readings: int = 1) -> str:
    """The one user turn for a chat model, before its chat template.

    >>> chat_turn("The sky is blue.", "What is blue?")[-13:]
    'word by word!'
    """
    return block(context, question, readings=readings) + CHAT_SUFFIX


def chat_prompt(tokenizer: Tokenizer, context: str, question: str, *, readings: int = 1) -> str:
    """The user turn in the tokenizer's chat template, ready for the answer; of BOS as ``as_user_turn`` says.

    Raises:
        SampleError: the tokenizer has no chat template.
    """
    return as_user_turn(tokenizer, chat_turn(context, question, readings=readings))


def as_user_turn(tokenizer: Tokenizer, content: str) -> str:
    """One user turn in the tokenizer's chat template, ready for the answer.

    The text of BOS, where a template writes it, stays out if the tokenizer puts BOS before every text by itself, so
    that an encoded prompt begins with it once.

    Raises:
        SampleError: the tokenizer has no chat template.
    """
    turn = {"role": "user", "content": content}
    try:
        prompt = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    except ValueError as error:
        raise SampleError(
            f'layout="chat" needs a tokenizer with a chat template ({str(error).splitlines()[0]}); use layout="base"'
        ) from error
    bos = tokenizer.special_tokens_map.get("bos_token") or ""
    return prompt.removeprefix(bos) if bos and _adds(tokenizer, bos) else prompt


def _adds(tokenizer: Tokenizer, bos: str) -> bool:
    """Whether a tokenizer puts BOS before a text by itself."""
    [token] = tokenizer(bos, add_special_tokens=False)["input_ids"]
    return tokenizer("a")["input_ids"][:1] == [token]
