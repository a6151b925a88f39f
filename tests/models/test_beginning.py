from types import SimpleNamespace

import pytest

from segregation.models.beginning import TRAINED_WITH_BOS, beginning
from segregation.models.family import families
from segregation.prompts.render import as_user_turn
from tests.conftest import byte_tokenizer

TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
WITH_BOS = "{{ bos_token }}" + TURN


def tokenizer(*, adds: bool, template: str | None):
    made = byte_tokenizer()
    if not adds:
        made.backend_tokenizer.post_processor = None
    made.chat_template = template
    return made


CONFIG = SimpleNamespace(bos_token_id=2)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("template", [TURN, WITH_BOS])
def test_a_chat_prompt_never_begins_with_two_bos(adds: bool, template: str):
    made = tokenizer(adds=adds, template=template)
    found = beginning(made, CONFIG, "jamba")
    assert found.plain == int(adds)
    assert found.chat == int(adds or template == WITH_BOS)


def test_a_template_that_writes_bos_keeps_it_where_the_tokenizer_does_not_add_it():
    assert as_user_turn(tokenizer(adds=False, template=WITH_BOS), "hi") == "<bos><|user|>hi"
    assert as_user_turn(tokenizer(adds=True, template=WITH_BOS), "hi") == "<|user|>hi"


@pytest.mark.parametrize(
    ("family", "adds", "template", "note"),
    [
        ("jamba", True, WITH_BOS, None),
        ("jamba", False, None, "plain prompts begin without BOS, which the models of this family were trained with"),
        ("qwen3", True, None, "plain prompts begin with BOS, which the models of this family were not trained with"),
        ("qwen3", False, TURN, None),
        ("bamba", True, TURN, "chat prompts begin with 1 BOS, where the chat template alone gives 0"),
        ("bamba", False, None, None),
    ],
)
def test_what_is_doubtful_is_noted(family: str, adds: bool, template: str | None, note: str | None):
    assert beginning(tokenizer(adds=adds, template=template), CONFIG, family).notes == ([note] if note else [])


def test_two_bos_and_two_ids_are_noted():
    twice = tokenizer(adds=True, template="{{ bos_token }}" + WITH_BOS)
    assert beginning(twice, SimpleNamespace(bos_token_id=7), "bamba").notes == [
        "BOS is 2 in the tokenizer and 7 in the config",
        "chat prompts begin with 2 BOS",
    ]


def test_families_are_named_as_they_are_known():
    assert set(TRAINED_WITH_BOS) <= {family.name for family in families().values()}
