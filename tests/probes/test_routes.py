"""Memories put together from two runs, against plain forwards and loops over caches that are put together by hand."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from string import ascii_letters

import pytest
import torch
from nnsight import save

from segregation.errors import ModelError, PlanError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.interventions.token_rules import HideTokens
from segregation.models.hybrid import HybridModel
from segregation.probes.routes import Border, routes
from segregation.prompts.pairs import Pair
from segregation.prompts.sample import Sample
from segregation.runs.loglikelihood import loglikelihood
from segregation.runs.record import Record
from segregation.scores.routes import coalitions, route_tables


def pair(id: str, before: str, after: str) -> Pair:
    """Two prompts that are alike but for the needle; the window of the random RecurrentGemma is 16 tokens."""
    samples = []
    for needle in ("ab=cd.", "ab=xy."):
        context = f"{before}{needle}{after}"
        prompt = f"{context} Q:ab A:"
        at = len(before)
        spans = {
            "needle": ((at, at + len(needle)),),
            "context": ((0, len(context)),),
            "question": ((len(context) + 3, len(context) + 5),),
        }
        samples.append(Sample(id, prompt, needle, spans))
    return Pair(*samples)


PAIRS = [pair("long", "once there was ", "no rain"), pair("short", "so ", ""), pair("late", "the end ", "it")]
BORDERS: tuple[Border, ...] = ("needle", "question", "answer")


def whole(model: HybridModel, sample: Sample, target: str, plan: Plan) -> float:
    (record,) = loglikelihood(model, [replace(sample, target=target)], plan)
    return record.loglikelihoods[0]


@pytest.mark.parametrize(
    "plan",
    [Plan(), Plan(AblateHeads(during=Phase.LAST), HideTokens("needle", during=Phase.PREFILL | Phase.DECODE))],
    ids=["base", "plan"],
)
def test_all_channels_of_one_run_are_that_run(any_scan: HybridModel, plan: Plan) -> None:
    found: dict[Border, list[Record]] = {border: list(routes(any_scan, PAIRS, border, plan=plan)) for border in BORDERS}
    for i, one in enumerate(PAIRS):
        runs = {"kvrc": one.clean, "-": one.corrupt}
        for coalition, sample in runs.items():
            for name, target in (("clean", one.clean.target), ("corrupt", one.corrupt.target)):
                expected = whole(any_scan, sample, target, plan)
                for border in BORDERS:
                    assert found[border][i].values[f"{coalition}/{name}"] == pytest.approx(expected, abs=2e-5)
    assert [record.sample_id for record in found["needle"]] == ["long", "short", "late"]
    assert [record.values["position"] for record in found["needle"]] == [1 + 21, 1 + 9, 1 + 14]
    assert [record.values["position"] for record in found["question"]] == [1 + 28, 1 + 9, 1 + 16]
    assert found["answer"][0].values["position"] == found["answer"][0].prompt_tokens - 1
    assert found["answer"][0].metadata["corrupt_target"] == "ab=xy." and found["answer"][0].plan_hash == plan.hash


def by_hand(model: HybridModel, one: Pair, clean: str, border: int, target: str) -> tuple[float, bool]:
    """ln p of a target and whether it is greedy: caches of plain forwards put together, then one token at a time."""
    caches, held = [], []
    mixers = [model.mixer(layer)._module for layer in model.recurrent_layers]
    on_modules = model.family.scan == "rg_lru"
    for sample in (one.clean, one.corrupt):
        cache = model.new_cache()
        model.reset()
        model.hf_model(torch.tensor([model.encode(sample)[:border]]), past_key_values=cache, use_cache=True)
        caches.append(cache)
        held += [[(m.conv1d_state.clone(), m.rg_lru.recurrent_states.clone()) for m in mixers]] if on_modules else []
    of = {channel: caches[0 if channel in clean else 1] for channel in "kvrc"}
    cache = caches[1]
    keys = [of["k"].layers[layer].keys for layer in model.attention_layers]
    values = [of["v"].layers[layer].values for layer in model.attention_layers]
    for layer, key, value in zip(model.attention_layers, keys, values, strict=True):
        cache.layers[layer].keys, cache.layers[layer].values = key, value
    for place, (layer, mixer) in enumerate(zip(model.recurrent_layers, mixers, strict=True)):
        if on_modules:
            mixer.conv1d_state = held["c" not in clean][place][0]
            mixer.rg_lru.recurrent_states = held["r" not in clean][place][1]
        else:
            cache.layers[layer].recurrent_states[0] = of["r"].layers[layer].recurrent_states[0]
            cache.layers[layer].conv_states[0] = of["c"].layers[layer].conv_states[0]
    prompt, answer = model.encode(one.clean), model.encode_continuation(target)
    total, greedy = 0.0, True
    for at, token in enumerate([*prompt[border:], *answer[:-1]], start=border):
        position = torch.tensor([[at]])
        logits = model.hf_model(torch.tensor([[token]]), past_key_values=cache, position_ids=position).logits[0, -1]
        if at >= len(prompt) - 1:
            wanted = answer[at - len(prompt) + 1]
            total += float(logits.log_softmax(-1)[wanted])
            greedy &= int(logits.argmax()) == wanted
    model.reset()
    return total, greedy


def test_coalitions_are_those_put_together_by_hand(any_scan: HybridModel) -> None:
    one = PAIRS[0]
    (record,) = routes(any_scan, [one], "needle")
    told: list[float] = []
    for name in ("kv", "rc", "k", "vr", "c"):
        for of, target in (("clean", one.clean.target), ("corrupt", one.corrupt.target)):
            with torch.no_grad():
                expected, greedy = by_hand(any_scan, one, name, int(record.values["position"]), target)
            assert record.values[f"{name}/{of}"] == pytest.approx(expected, abs=2e-5)
            assert record.values[f"{name}/{of}_exact"] == greedy
            told.append(expected)
    gaps = [b - a for a, b in pairwise(sorted(told))]
    assert min(gaps) > 1e-4  # no two coalitions are alike, so none can stand for another


def test_what_greedy_decoding_writes_is_exact(any_scan: HybridModel) -> None:
    """Targets that each run writes itself, of the first prompts after which a random model writes whole characters."""

    def written(sample: Sample) -> str | None:
        """The token that greedy decoding writes, as text, if that is a text of one token."""
        with torch.no_grad():
            ids = torch.tensor([any_scan.encode(sample)])
            token = int(any_scan.trace(ids, trace=False).logits[0, -1].argmax())
        text = any_scan.tokenizer.decode([token], skip_special_tokens=True)  # pyright: ignore[reportOptionalMemberAccess]
        return text if any_scan.encode_continuation(text) == [token] else None

    one, texts = next(
        (one, texts)
        for one in (pair("x", f"{letter} ", "") for letter in ascii_letters)
        if None not in (texts := (written(one.clean), written(one.corrupt)))
    )
    own = Pair(replace(one.clean, target=texts[0]), replace(one.corrupt, target=texts[1]))
    (record,) = routes(any_scan, [own], "needle")
    assert record.values["kvrc/clean_exact"] == record.values["-/corrupt_exact"] == 1
    other = Pair(replace(own.clean, target="q" if texts[0] != "q" else "z"), own.corrupt)
    (record,) = routes(any_scan, [other], "needle")
    assert record.values["kvrc/clean_exact"] == 0 and record.values["-/corrupt_exact"] == 1


def test_pairs_measured_together_are_as_alone(any_scan: HybridModel) -> None:
    together = list(routes(any_scan, PAIRS, "needle", batch_size=64))
    alone = list(routes(any_scan, PAIRS, "needle", batch_size=16))
    for one, other in zip(together, alone, strict=True):
        assert one.sample_id == other.sample_id
        for name, value in one.values.items():
            assert value == pytest.approx(other.values[name], abs=2e-5)


def test_models_of_one_kind_have_the_coalitions_of_their_channels(build: Callable[..., HybridModel]) -> None:
    attention = build("jamba", attn_layer_period=1, attn_layer_offset=0)
    recurrence = build("recurrentgemma", block_types=["recurrent"])
    for model, channels in ((attention, ("keys", "values")), (recurrence, ("recurrent", "conv"))):
        records = list(routes(model, PAIRS, "question"))
        (table,) = route_tables(records)
        assert table.channels == channels and list(table.values["clean"]) == coalitions(channels)
        everything = coalitions(channels)[-1]
        for record, one in zip(records, PAIRS, strict=True):
            for name, sample in ((everything, one.clean), ("-", one.corrupt)):
                expected = whole(model, sample, one.clean.target, Plan())
                assert record.values[f"{name}/clean"] == pytest.approx(expected, abs=2e-5)


def test_how_much_the_memories_differ(model: HybridModel) -> None:
    one = PAIRS[1]
    (record,) = routes(model, [one], "needle")
    states = []
    for sample in (one.clean, one.corrupt):
        with torch.no_grad(), model.trace(torch.tensor([model.encode(sample)[:10]]), use_cache=True):
            state = save([model.state(layer).recurrent for layer in model.recurrent_layers])
        states.append(state)
    gaps = [float((a - b).abs().max()) for a, b in zip(*states, strict=True)]
    assert record.values["change/r"] == pytest.approx(max(gaps), rel=1e-4)
    assert all(record.values[f"change/{channel}"] > 1e-3 for channel in "kvrc")


def test_what_cannot_be_measured_is_refused(model: HybridModel, build: Callable[..., HybridModel]) -> None:
    one = PAIRS[0]
    with pytest.raises(SampleError, match=r"before position 19, but the prompts differ up to position 20"):
        routes(model, [one], 19)
    with pytest.raises(SampleError, match="it must be 21 to 36"):
        routes(model, [one], 37)
    longer = replace(one.corrupt, prompt=one.corrupt.prompt + "!")
    with pytest.raises(SampleError, match="has 37 and 38 tokens"):
        routes(model, [Pair(one.clean, longer)])
    with pytest.raises(SampleError, match="of which 0 differ"):
        routes(model, [Pair(one.clean, one.clean)])
    unsafe = build("jamba")
    unsafe.can_fork = False
    with pytest.raises(ModelError, match="cannot be forked"):
        routes(unsafe, [one])
    unsafe.can_fork, unsafe.can_batch = True, False
    assert len(list(routes(unsafe, PAIRS[:2], "answer"))) == 2


def test_a_border_that_is_neither_a_name_nor_a_whole_number_is_refused(build) -> None:
    with pytest.raises(PlanError, match="or a position, a whole number; got True"):
        routes(build("jamba"), [], True)
