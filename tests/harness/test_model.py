import functools
import random

import pytest
from lm_eval.api.model import CachingLM
from tokenizers import processors

from segregation.errors import ModelError, PlanError, SampleError, SegregationError
from segregation.harness import SegregationLM
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.interventions.token_rules import HideAll, HideTokens
from segregation.prompts.sample import Sample
from segregation.runs.loglikelihood import loglikelihood
from tests.conftest import FAMILIES, byte_tokenizer
from tests.harness.conftest import asked, hf_model, save

TOLERANCE = 2e-5
"""Nats per token, in fp32."""

RNG = random.Random(1)
RANDOM_TEXT = [
    *[
        ("".join(RNG.choices("abcdefgh ijkl", k=context)) + "x", "".join(RNG.choices("abc def", k=new)))
        for context, new in ((4, 3), (29, 1), (11, 7), (1, 2), (21, 1), (38, 12), (79, 5))
    ],
    ("abc  ", "def"),  # the spaces go to the continuation
    ("", "hello"),  # the prefix token is the context
    ("<bos>abc", "x"),  # not doubled
    *[("q" * 80, text) for text in ("a", "bc", "d")],  # read once
]
WORDS = [
    ("The best thing to do in San Francisco is", " eat a sandwich and sit in Dolores Park"),
    ("Question: who is there? Answer: ", " no one"),
    ("", "The city has a park"),
    ("the " * 80, " city"),
    ("the " * 80, " park is"),
]
PLANS = [
    Plan(AblateHeads()),
    Plan(AblateHeads(during=Phase.PREFILL)),
    Plan(KeepTopHeads(1, during=Phase.GENERATION)),
    Plan(HideAll(during=Phase.LAST)),
    Plan(HideTokens("prompt", during=Phase.GENERATION)),
]


def made(folders, name, **options):
    return SegregationLM.create_from_arg_obj({"pretrained": str(folders[name]), **options})


@pytest.fixture(scope="module")
def made_once(folders):
    """``made_once(name, batch_size, **options)``: opened and checked once for all tests, which may not change it."""
    opened = functools.cache(functools.partial(made, folders))

    def shared(name, batch_size=1, **options):
        lm = opened(name, **options)
        return SegregationLM(lm.model, batch_size=batch_size, add_bos_token=lm.add_bos_token)

    return shared


@pytest.fixture(params=FAMILIES)
def lm(request, made_once):
    return made_once(request.param)


# -- equal to lm-eval's hf ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize(
    ("name", "requests"),
    [*[(name, RANDOM_TEXT) for name in FAMILIES], ("tiny-jamba", WORDS), ("tiny-recurrentgemma", WORDS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scores_are_those_of_hf_which_pads_right(made_once, hf, name, requests, batch_size):
    theirs, ours = hf(name, batch_size), made_once(name, batch_size)
    pairs, texts = asked("loglikelihood", requests), asked("loglikelihood_rolling", [(a + b,) for a, b in requests])
    for pair, (expected, written), (found, greedy) in zip(
        requests, theirs.loglikelihood(pairs, True), ours.loglikelihood(pairs, True), strict=True
    ):
        tokens = len(ours._encode_pair(*pair)[1] if pair[0] else ours.tok_encode(pair[1], False))
        assert abs(expected - found) / tokens <= TOLERANCE, pair
        assert greedy == written
    for (a, b), expected, found in zip(
        requests, theirs.loglikelihood_rolling(texts, True), ours.loglikelihood_rolling(texts, True), strict=True
    ):
        assert abs(expected - found) / len(ours.tok_encode(a + b)) <= TOLERANCE, (a, b)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_that_of_hf_one_by_one(made_once, hf, name, batch_size):
    settings = [
        {"until": ["a", "\n"], "max_gen_toks": 12},
        {"until": "\n\n", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7},
        {"max_new_tokens": 20, "top_p": 1.0},
        {"until": ["</s>", "]", "'"], "max_gen_toks": 16, "temperature": 0.0},
    ]
    requests = [(context, settings[i % len(settings)]) for i, (context, _) in enumerate(RANDOM_TEXT) if context]
    expected = hf(name).generate_until(asked("generate_until", requests), True)
    assert made_once(name, batch_size).generate_until(asked("generate_until", requests), True) == expected
    assert len(set(expected)) > len(expected) // 2


def test_greedy_text_scores_as_greedy(lm):
    contexts = [context for context, _ in RANDOM_TEXT if context.endswith("x")]
    ask = [(context, {"max_gen_toks": 3}) for context in contexts]
    texts = lm.generate_until(asked("generate_until", ask), True)
    readable = [(c, text) for c, text in zip(contexts, texts, strict=True) if text.isascii() and text.strip() == text]
    assert readable
    scored = lm.loglikelihood(asked("loglikelihood", [*readable, *[(c, f"{t[:-1]}~") for c, t in readable]]), True)
    assert [greedy for _, greedy in scored] == [True] * len(readable) + [False] * len(readable)


# -- equal to segregation's own scores under plans ---------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_under_a_plan_are_those_of_loglikelihood(made_once, name, plan):
    lm = made_once(name)
    scored = [(context, text) for context, text in RANDOM_TEXT if context and context == context.rstrip()]
    samples = [Sample(id=str(i), prompt=context, target=text) for i, (context, text) in enumerate(scored)]
    samples = [sample for sample in samples if not sample.prompt.startswith("<bos>")]
    under = {record.sample_id: record.loglikelihoods[0] for record in loglikelihood(lm.model, samples, plan)}
    base = {record.sample_id: record.loglikelihoods[0] for record in loglikelihood(lm.model, samples)}
    expected = [under[sample.id] for sample in samples]
    for batch_size in (1, 8):
        harness = SegregationLM(lm.model, plan, batch_size=batch_size)
        pairs = asked("loglikelihood", [(sample.prompt, sample.target) for sample in samples])
        found = [score for score, _ in harness.loglikelihood(pairs, True)]
        assert found == pytest.approx(expected, abs=TOLERANCE)
    assert max(abs(under[sample.id] - base[sample.id]) for sample in samples) > 0.01


def test_a_plan_that_the_model_carries_acts_and_is_reported(lm):
    plan = Plan(AblateHeads(during=Phase.GENERATION))
    pairs = asked("loglikelihood", RANDOM_TEXT[:4])
    carried = SegregationLM(lm.model.intervene(plan))
    assert carried.loglikelihood(pairs, True) == SegregationLM(lm.model, plan).loglikelihood(pairs, True)
    assert carried.get_model_info()["plan_hash"] == plan.hash


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
@pytest.mark.parametrize("name", ["jamba", "tiny-jamba"])
def test_tokens_are_those_of_hf(made_once, hf, name, options):
    theirs, ours = hf(name, **options), made_once(name, **options)
    for context, text in RANDOM_TEXT if name == "jamba" else WORDS:
        for special in (None, True, False):
            assert ours.tok_encode(context + text, special) == theirs.tok_encode(context + text, special)
        if context:
            assert ours._encode_pair(context, text) == theirs._encode_pair(context, text)
    for one in ("prefix_token_id", "eot_token_id", "tokenizer_name"):
        assert getattr(ours, one) == getattr(theirs, one)


def test_bos_can_be_added_to_texts_of_a_tokenizer_that_adds_none(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    folders = {"bare": save(tmp_path, "jamba", tokenizer)}
    assert tokenizer.bos_token_id not in made(folders, "bare").tok_encode("ab")
    found = made(folders, "bare", add_bos_token=True).tok_encode("ab")
    assert found == hf_model(tmp_path, add_bos_token=True).tok_encode("ab") and found[0] == tokenizer.bos_token_id


CHAT = [
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In the"},
]


@pytest.mark.parametrize("more", [True, False])
def test_conversations_are_those_of_hf(folders, hf, more):
    theirs, ours = hf("tiny-jamba"), made(folders, "tiny-jamba")
    chat = CHAT[:1] if more else CHAT
    assert ours.apply_chat_template(chat, more) == theirs.apply_chat_template(chat, more)
    assert ours.chat_template(True) == theirs.chat_template(True)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + str(
        ours.tokenizer.chat_template
    )
    ours.tokenizer.chat_template = theirs.tokenizer.chat_template = refusing
    spoken = [{"role": "system", "content": "Be brief."}, *chat]
    assert ours.apply_chat_template(spoken, more) == theirs.apply_chat_template(spoken, more)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "request_", "error", "why"),
    [
        ("loglikelihood", ("abc", ""), SampleError, "the continuation of 'abc' is empty"),
        ("loglikelihood", ("", "<bos>"), SampleError, "need a token each"),
        ("loglikelihood", ("a" * 300, "b"), SampleError, "a prompt of 301 tokens and 0 new ones .* would truncate"),
        ("loglikelihood", ("a" * 250, "b" * 8), SampleError, "251 tokens and 7 new ones need 258"),
        ("loglikelihood_rolling", ("a" * 300,), SampleError, "a prompt of 1 tokens and 300 new ones"),
        ("generate_until", ("abc", {"max_gen_toks": 253}), SampleError, "4 tokens and 253 new ones need 257"),
        ("generate_until", ("abc", {"max_gen_toks": 0}), ModelError, "at least 1, got 0"),
        ("generate_until", ("abc", {"do_sample": True}), ModelError, "generation is greedy here.*do_sample=False"),
        ("generate_until", ("abc", {"temperature": 0.5}), ModelError, "generation is greedy here"),
        ("generate_until", ("abc", {"num_beams": 2}), ModelError, "num_beams=2, which would change it"),
        ("generate_until", ("abc", {"repetition_penalty": 1.2}), ModelError, "repetition_penalty=1.2"),
    ],
)
def test_what_hf_would_truncate_or_sample_is_refused(made_once, kind, request_, error, why):
    with pytest.raises(error, match=why):
        getattr(made_once("jamba"), kind)(asked(kind, [request_]), True)


def test_the_longest_requests_that_fit_are_scored(made_once):
    lm = made_once("jamba")
    assert lm.max_length == 256
    assert lm.loglikelihood(asked("loglikelihood", [("a" * 249, "b" * 7)]), True)
    assert lm.loglikelihood_rolling(asked("loglikelihood_rolling", [("a" * 254,), ("",)]), True)


DECODE, PREFILL = Plan(AblateHeads(during=Phase.DECODE)), Plan(AblateHeads(during=Phase.PREFILL))
EITHER = Plan(AblateHeads(during=Phase.PREFILL | Phase.DECODE))


@pytest.mark.parametrize(
    ("plan", "kind", "requests", "why"),
    [
        (
            DECODE,
            "loglikelihood",
            [("abc", "de"), ("abc", "d")],
            r"during=DECODE\) would do nothing in scoring 'd' after 'abc', .* PREFILL\|LAST:",
        ),
        (DECODE, "generate_until", [("abc", {"max_gen_toks": 1})], "would do nothing in generating after 'abc'"),
        (
            PREFILL,
            "loglikelihood",
            [("abc", "de"), ("", "de")],
            r"during=PREFILL\) would do nothing in scoring 'de' after '', .* LAST\|DECODE:",
        ),
        (EITHER, "loglikelihood", [("", "de"), ("", "d")], r"DECODE\) would do nothing in .* all positions are LAST:"),
        (PREFILL, "loglikelihood_rolling", [("abc",)], "would do nothing in scoring 'abc' after ''"),
    ],
)
def test_a_rule_without_a_position_to_act_on_is_refused(lm, plan, kind, requests, why):
    with pytest.raises(PlanError, match=why):
        getattr(SegregationLM(lm.model, plan), kind)(asked(kind, requests), True)


def test_a_prefill_plan_acts_on_generation(lm):
    asks = asked("generate_until", [("abcdefgh", {"max_gen_toks": 8})])
    assert SegregationLM(lm.model, PREFILL).generate_until(asks, True) != lm.generate_until(asks, True)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(HideTokens("needle")), r"names the span 'needle' of a sample, .*\"prompt\""),
        (Plan(HideTokens("prompt", but="question")), "names the span 'question'"),
        (Plan(AblateRecurrent("skip", span="needle")), "names the span 'needle' of a sample"),
        (Plan(PatchState("memory.safetensors", sha256="0")), "goes by sample ids"),
        (Plan(KeepTopHeads(32)), r"k must be in 0\.\.4"),
        (Plan(AblateHeads(((0, 0),))), "layer must be an attention layer"),
    ],
    ids=str,
)
def test_plans_that_requests_or_the_model_cannot_follow(lm, plan, why):
    with pytest.raises(PlanError, match=why):
        SegregationLM(lm.model, plan)


def test_a_tokenizer_without_a_chat_template(lm):
    with pytest.raises(SampleError, match=r"no chat template; leave --apply_chat_template out"):
        lm.apply_chat_template(CHAT)


def test_lm_evals_cache_of_answers_is_refused_since_it_does_not_know_plans(lm, tmp_path):
    with pytest.raises(SegregationError, match=r"answers of one plan .* to another.*leave --use_cache out"):
        CachingLM(lm, str(tmp_path / "answers.db"))
