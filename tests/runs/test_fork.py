import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch

from segregation.errors import ModelError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.models.checks_outcome import Check
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs.fork import Fork, fork, join
from segregation.runs.witness import check_read

SAMPLES = [Sample("a", "the cat sat on the mat and slept all day", "x"), Sample("b", "a short prompt", "x")]


def whole(model: HybridModel, tokens: list[int]) -> torch.Tensor:
    """Logits of one plain forward pass over all tokens."""
    model.reset()
    with torch.no_grad():
        return model.hf_model(torch.tensor([tokens]), use_cache=False).logits[0]


def test_forks_go_on_as_one_forward_would_and_stay_as_they_were(any_scan: HybridModel) -> None:
    ids = any_scan.encode(SAMPLES[0])
    one = fork(any_scan, SAMPLES[0], 10)
    assert one.read == (10,) and one.prompts == (tuple(ids),)
    expected = whole(any_scan, ids)[10:25]
    rest, other = torch.tensor([ids[10:25]]), torch.tensor([[9] * 15])
    first = one.logits(rest)
    assert torch.allclose(first[0], expected, atol=1e-5)
    one.expand([0, 0]).logits(other.expand(2, -1))
    assert not torch.allclose(one.logits(other)[0], expected, atol=1e-2)
    assert torch.equal(one.logits(rest), first)
    further = one.read_on(rest[:, :8])
    assert further.read == (18,) and one.read == (10,)
    assert torch.allclose(further.logits(rest[:, 8:])[0], expected[8:], atol=1e-5)


def test_rows_of_different_lengths_go_on_each_as_alone(any_scan: HybridModel) -> None:
    prompts = [any_scan.encode(sample) for sample in SAMPLES]
    both = fork(any_scan, SAMPLES, [20, 4])
    assert both.read == (20, 4)
    rows = both.expand([1, 0, 1])
    next_tokens = torch.tensor([[7, 8, 9], [10, 11, 12], [13, 14, 15]])
    logits = rows.logits(next_tokens)
    for row, (prompt, n) in enumerate(((prompts[1], 4), (prompts[0], 20), (prompts[1], 4))):
        alone = whole(any_scan, [*prompt[:n], *next_tokens[row].tolist()])[-3:]
        assert torch.allclose(logits[row], alone, atol=1e-5)
    short = both.expand([1])
    joined = join([short, both.expand([0])]).logits(next_tokens[:2])
    assert torch.allclose(joined, logits[:2], atol=1e-5)
    assert torch.allclose(short.logits(next_tokens[:1]), logits[:1], atol=1e-5)


def test_all_of_a_prompt_but_its_last_token_is_read_unless_told_otherwise(model: HybridModel) -> None:
    prompts = [model.encode(sample) for sample in SAMPLES]
    one = fork(model, SAMPLES)
    assert one.read == tuple(len(prompt) - 1 for prompt in prompts)
    last = one.logits(torch.tensor([[prompt[-1]] for prompt in prompts]))[:, 0]
    for row, prompt in enumerate(prompts):
        assert torch.allclose(last[row], whole(model, prompt)[-1], atol=1e-5)


def test_an_exception_in_the_middle_leaves_model_and_fork_as_they_were(any_scan: HybridModel) -> None:
    one = fork(any_scan, SAMPLES[0], 10)
    tokens = torch.tensor([[5, 6, 7]])
    before, untouched = one.logits(tokens), whole(any_scan, [5, 6, 7])
    calls: list[int] = []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    handle = any_scan.hf_model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        with pytest.raises(InterruptedError):
            one.logits(tokens)
    finally:
        handle.remove()
    assert torch.equal(one.logits(tokens), before)
    assert torch.equal(whole(any_scan, [5, 6, 7]), untouched)


def test_a_plan_acts_by_position_wherever_the_prompt_is_cut(model: HybridModel) -> None:
    """The last prompt position and what comes after it are the same phases for a cut prompt as for a whole one."""
    prompt = model.encode(SAMPLES[0])
    new = [7, 8]
    for rule in (AblateHeads(during=Phase.PREFILL | Phase.LAST), KeepTopHeads(1, during=Phase.DECODE)):
        plan = Plan(rule)
        with torch.no_grad():
            traced = model.intervene(plan).trace(
                torch.tensor([[*prompt, *new]]), prompt_lengths=[len(prompt)], trace=False
            )
        for n in (len(prompt) - 8, len(prompt)):
            logits = fork(model, SAMPLES[0], n, plan=plan).logits(torch.tensor([[*prompt[n:], *new]]))
            assert torch.allclose(logits[0], traced.logits[0, n:], atol=1e-5)


def test_channels_of_two_runs_are_mixed_and_seen_to_be_read(any_scan: HybridModel) -> None:
    other = replace(SAMPLES[0], prompt="the dog ran on the mat and slept all day")
    runs = fork(any_scan, [SAMPLES[0], other], 13)  # right after what differs
    tokens = torch.tensor([[5, 6, 7]])
    clean, corrupt = runs.logits(tokens.expand(2, -1))
    channels = ("keys", "values", "recurrent", "conv")
    rows = {channel: [0, 1, *(0 if channel == own else 1 for own in channels)] for channel in channels}
    mixed = runs.mixed(rows)
    logits = mixed.logits(tokens.expand(6, -1))
    assert torch.allclose(logits[0], clean, atol=1e-5) and torch.allclose(logits[1], corrupt, atol=1e-5)
    for row in range(2, 6):  # each channel alone changes something, and not all
        assert not torch.allclose(logits[row], corrupt, atol=1e-4)
        assert not torch.allclose(logits[row], clean, atol=1e-4)
    assert torch.equal(runs.logits(tokens.expand(2, -1))[0], clean)


def test_shorter_rows_of_a_fork_are_mixed_without_the_padding_of_longer_ones(any_scan: HybridModel) -> None:
    both, alone = fork(any_scan, SAMPLES[:2], [20, 6]), fork(any_scan, SAMPLES[1], 6)
    mixed = both.mixed({channel: [1] for channel in ("keys", "values", "recurrent", "conv")})
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(mixed.logits(tokens), alone.logits(tokens), atol=1e-5)
    assert torch.allclose(mixed.read_on(tokens[:, :2]).logits(tokens[:, 2:]), alone.logits(tokens)[:, 2:], atol=1e-5)


def test_a_channel_that_a_layer_has_not_is_nothing(any_scan: HybridModel) -> None:
    one = fork(any_scan, SAMPLES[0], 6)
    recurrent, attention = any_scan.recurrent_layers[0], any_scan.attention_layers[0]
    assert one.remembered(recurrent, "keys", [0]) is None
    assert one.remembered(attention, "recurrent", [0]) is None


def test_a_mixed_memory_is_that_of_plain_tensors_put_together(any_scan: HybridModel) -> None:
    """By hand: two caches filled by plain forwards, the second's keys replaced by the first's, layer by layer."""
    other = replace(SAMPLES[0], prompt="the dog ran on the mat and slept all day")
    ids = [any_scan.encode(sample)[:20] for sample in (SAMPLES[0], other)]
    caches = []
    with torch.no_grad():
        for prompt in ids:
            any_scan.reset()
            cache = any_scan.new_cache()
            any_scan.hf_model(torch.tensor([prompt]), past_key_values=cache, use_cache=True)
            caches.append(cache)  # the last one's states are on the modules, where a family keeps them there
        for layer in any_scan.attention_layers:
            caches[1].layers[layer].keys = caches[0].layers[layer].keys
        position = torch.tensor([[20]])
        by_hand = any_scan.hf_model(torch.tensor([[5]]), past_key_values=caches[1], position_ids=position).logits[0]
    any_scan.reset()
    rows = {"keys": [0], "values": [1], "recurrent": [1], "conv": [1]}
    mixed = fork(any_scan, [SAMPLES[0], other], 20).mixed(rows)
    assert torch.allclose(mixed.logits(torch.tensor([[5]]))[0], by_hand, atol=1e-5)


def test_a_memory_that_is_not_read_is_found_out(any_scan: HybridModel) -> None:
    one = fork(any_scan, SAMPLES[0], 20)

    def memory():
        return one.memory.select(torch.tensor([0]))

    tokens = torch.tensor([5])
    layers = len(any_scan.attention_layers) + len(any_scan.recurrent_layers)
    assert (
        check_read(any_scan, memory(), tokens, lambda layer, channel: one.remembered(layer, channel, [0])) == 2 * layers
    )
    for wrong in ("keys", "values", "recurrent", "conv"):

        def written(layer: int, channel: str, wrong: str = wrong):
            own = one.remembered(layer, channel, [0])
            return own + 1 if channel == wrong else own

        with pytest.raises(ModelError, match=f"{wrong} of layer"):
            check_read(any_scan, memory(), tokens, written)
    assert torch.equal(one.logits(tokens[None]), one.logits(tokens[None]))


def test_what_are_no_tokens_is_refused(model: HybridModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for users, whose types nobody checks."""
    for name in ("_feed", "logits", "read_on"):
        monkeypatch.setattr(Fork, name, inspect.unwrap(getattr(Fork, name)))
    one = fork(model, SAMPLES[0], 10)
    for go_on in (one.logits, one.read_on):
        for wrong in ([[3, 4]], torch.zeros(2, dtype=torch.long), torch.zeros(1, 2), None):
            with pytest.raises(ModelError, match="a tensor of"):
                go_on(wrong)


def test_what_cannot_be_forked_is_refused(model: HybridModel, build: Callable[..., HybridModel]) -> None:
    with pytest.raises(SampleError, match="has 41 tokens, so 1 to as many can be read; got 42"):
        fork(model, SAMPLES[0], 42)
    with pytest.raises(SampleError, match="for each of the 2 samples, got 1"):
        fork(model, SAMPLES, [3])
    one = fork(model, SAMPLES[0], 10)
    for rows in ([1], [], [-1], [True]):
        for named in (one.expand, lambda rows: one.remembered(model.attention_layers[0], "keys", rows)):
            with pytest.raises(ModelError, match=rf"the rows 0\.\.0, got {re.escape(str(rows))}"):
                named(rows)
    for go_on in (one.logits, one.read_on):
        with pytest.raises(ModelError, match=r"here are 1 rows, .* got one of \(2, 1\)"):
            go_on(torch.zeros(2, 1, dtype=torch.long))
        with pytest.raises(ModelError, match=rf"0 to {model.d_vocab - 1}; got 3 to {model.d_vocab}"):
            go_on(torch.tensor([[3, model.d_vocab]]))
    with pytest.raises(ModelError, match="as many rows for each channel, got 1 for keys, 2 for values, 1 for"):
        one.mixed({"keys": [0], "values": [0, 0], "recurrent": [0], "conv": [0]})
    with pytest.raises(ModelError, match="not: conv, recurrent"):
        one.mixed({"keys": [0], "values": [0]})
    both = fork(model, SAMPLES, [10, 5])
    with pytest.raises(ModelError, match="row 0 is mixed from"):
        both.mixed({"keys": [0], "values": [1], "recurrent": [0], "conv": [0]})
    with pytest.raises(ModelError, match="of one model under one plan"):
        join([one, replace(one, plan=Plan(AblateHeads()))])
    unsafe = build("jamba")
    unsafe.can_fork = False
    unsafe.description["self_checks"] = [
        asdict(Check("two forks", "fail", 0.3, 1e-4, "fork")),
        asdict(Check("another", "pass", 0.0, 1e-4, "fork")),
    ]
    with pytest.raises(ModelError, match=r"cannot be forked: two forks measured 3\.00e-01, tolerance 1e-04\. Read"):
        fork(unsafe, SAMPLES[0])
    unsafe.can_fork, unsafe.can_batch = True, False
    with pytest.raises(ModelError, match="padded batches wrong"):
        fork(unsafe, SAMPLES, [10, 5])
    assert fork(unsafe, SAMPLES, 5).read == (5, 5)
