"""How a context and a question become a prompt: base, chat and just-read-twice layouts of arXiv 2510.19861."""

BLOCK = "CONTEXT: {context}\n\nQUESTION: {question}"
BASE_SUFFIX = "\n\nANSWER: Here is the most relevant sentence in the context: "
CHAT_SUFFIX = " Output the most relevant sentence in the context, word by word!"
TWICE_SEPARATOR = "\n\n"


def block(context: str, question: str, *, readings: int = 1) -> str:
    """The CONTEXT/QUESTION block, repeated ``readings`` times (2 is "just read twice").

    >>> block("The sky is blue.", "What is blue?", readings=2).count("CONTEXT")
    2
    """
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
