import pytest
import torch

from segregation.errors import ModelError, SampleError
from segregation.models.channels import read_channel, write_channel
from segregation.models.hybrid import HybridModel
from segregation.probes.interchange import CHANNELS, exchangeable, interchange, partners
from segregation.probes.samples import ProbeSamples
from segregation.prompts.sample import Sample


@pytest.fixture(scope="module")
def samples(tokenizer) -> list[Sample]:
    return ProbeSamples(needles=2, haystacks=2, blocks=2, before=30, after=12).samples(tokenizer)


def plainly(model: HybridModel, own: Sample, other: Sample, distance: int, channels, target: str):
    """One row by hand: read both prefixes, overwrite the channels, read on; its first new token, a target's score."""
    after = own.metadata["needle_end"] + 1 + distance

    def read(ids: list[int]):
        model.reset()
        cache = model.new_cache()
        model.hf_model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
        return cache

    def feed(cache, token: int, position: int) -> torch.Tensor:
        return model.hf_model(
            torch.tensor([[token]]), position_ids=torch.tensor([[position]]), past_key_values=cache, use_cache=True
        ).logits[0, -1]

    def exchanged_and_read_on():
        cache = read(model.encode(other)[:after])
        layers = {"keys": model.attention_layers, "values": model.attention_layers}
        taken = {
            (channel, layer): read_channel(model, cache, layer, channel).clone()
            for channel in channels
            for layer in layers.get(channel, model.recurrent_layers)
        }
        prompt = model.encode(own)
        cache = read(prompt[:after])
        for (channel, layer), tensor in taken.items():
            write_channel(model, cache, layer, channel, tensor)
        for position in range(after, len(prompt)):
            logits = feed(cache, prompt[position], position)
        return cache, logits, len(prompt)

    with torch.no_grad():
        cache, logits, position = exchanged_and_read_on()
        first, score = int(logits.argmax()), 0.0
        for number, token in enumerate(model.encode_continuation(target)):
            score += float(logits.log_softmax(-1)[token])
            logits = feed(cache, token, position + number)
    model.reset()
    return model.tokenizer.decode([first], skip_special_tokens=True), score


def test_an_exchange_is_that_of_plain_forwards(any_scan: HybridModel, samples):
    model, pairs = any_scan, partners(samples)
    found = interchange(model, pairs, 3, exchangeable(model), max_new_tokens=1)
    assert [(one.sample.id, one.other.id) for one in found] == [(own.id, other.id) for own, other in pairs]
    for way in exchangeable(model):
        own, other = pairs[1]
        answer = found[1].answers[way]
        text, score = plainly(model, own, other, 3, CHANNELS[way], other.target)
        assert answer.text == text
        assert answer.other_loglikelihood == pytest.approx(score, abs=2e-3)
    scores = {answer.own_loglikelihood for answer in found[1].answers.values()}
    assert len(scores) == 3  # each exchange does something


def test_a_run_that_exchanges_with_itself_is_untouched(build, samples):
    model = build("jamba")
    [found] = interchange(model, [(samples[0], samples[0])], 0, exchangeable(model), max_new_tokens=2)
    nothing = found.answers["nothing"]
    for answer in found.answers.values():
        assert answer.text == nothing.text
        assert answer.own_loglikelihood == pytest.approx(nothing.own_loglikelihood, abs=1e-4)
        assert answer.own_loglikelihood == pytest.approx(answer.other_loglikelihood, abs=1e-4)


def test_the_smallest_batches_give_the_same(build, samples):
    model = build("recurrentgemma")
    ways = ("states", "keys_values")
    whole, single = (interchange(model, partners(samples), 9, ways, max_new_tokens=1, batch_size=n) for n in (None, 2))
    for one, other in zip(whole, single, strict=True):
        for way in ways:
            assert one.answers[way].own_loglikelihood == pytest.approx(other.answers[way].own_loglikelihood, abs=1e-3)


def test_partners_are_two_needles_of_each_haystack(samples):
    pairs = partners(samples)
    assert [own.metadata["haystack"] for own, _ in pairs] == [0, 1]
    assert [(own.metadata["word"], other.metadata["word"]) for own, other in pairs] == [(0, 1), (1, 0)]
    with pytest.raises(SampleError, match="is alone in its own"):
        partners(samples[:1])


def test_models_of_one_kind_exchange_what_they_have(build, samples):
    attention = build("recurrentgemma", block_types=("attention",), num_hidden_layers=2)
    recurrence = build("recurrentgemma", block_types=("recurrent",), num_hidden_layers=2)
    for model, way in ((attention, "keys_values"), (recurrence, "states")):
        assert exchangeable(model) == ("nothing", way)
        [found] = interchange(model, partners(samples)[:1], 2, exchangeable(model), max_new_tokens=2)
        text, score = plainly(model, *partners(samples)[0], 2, CHANNELS[way], partners(samples)[0][1].target)
        assert found.answers[way].text.startswith(text)
        assert found.answers[way].other_loglikelihood == pytest.approx(score, abs=2e-3)
    with pytest.raises(ModelError, match="can exchange"):
        interchange(attention, partners(samples), 2, ("states",))


def test_pairs_that_read_on_differently_and_distances_outside_are_refused(model: HybridModel, samples):
    first, second = (next(s for s in samples if s.metadata["haystack"] == n) for n in (0, 1))
    with pytest.raises(SampleError, match="read the same after"):
        interchange(model, [(first, second)], 0, ("nothing",))
    with pytest.raises(SampleError, match="distance lies in 0"):
        interchange(model, partners(samples), 10_000, ("nothing",))
