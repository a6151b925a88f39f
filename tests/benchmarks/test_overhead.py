"""The ways that are timed do the same thing, and what is counted or fitted is what it says."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peers
from benchmarks.by_hand import KEEP, ZERO, check, top_heads, with_hooks
from benchmarks.operations import per_step
from benchmarks.overhead import BASE, TOLERANCE, Output, differences, ways
from benchmarks.scaling import WAYS, exponent, measure
from benchmarks.subjects import MODELS, Prompts, Subject, needle_prompts, subject
from benchmarks.throughput import measure as measure_throughput
from segregation.errors import PlanError, SampleError
from segregation.interventions.heads import SCORES, keep_top


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_way_gives_the_same(name: str) -> None:
    made = subject(name)
    prompts = needle_prompts(made, 128, 1)
    found = ways(made, prompts, 3)
    notes = differences(found, 3)
    assert len(notes) == 2 + 3 * 4
    assert max(float(note.get("logits off by", 0)) for note in notes.values()) < 1e-5
    others = {**found, f"{KEEP}: ours": found[f"{ZERO}: ours"]}
    with pytest.raises(PlanError, match=r"'keep 4 heads: ours' must give what its reference gives"):
        differences(others, 3)
    nothing = {BASE: found[BASE], f"{ZERO}: by hand": found[BASE]}
    with pytest.raises(PlanError, match=r"there is nothing to time"):
        differences(nothing, 3)


def test_modules_share_tensors_and_plans_by_hand_stay_on_their_own() -> None:
    made = subject(MODELS[0])
    prompts = needle_prompts(made, 128, 2)
    assert prompts.ids.shape == (2, 128)
    assert prompts.needle.sum(1).tolist() == [len(spans.tokens("needle")) for spans in prompts.spans]
    hooked = with_hooks(made.another(), made.heads, KEEP, prompts)
    assert next(hooked.parameters()) is next(made.stock.parameters())
    assert hooked.config is not made.stock.config
    assert made.stock.config._attn_implementation == made.plain.config._attn_implementation == "sdpa"
    before = made.stock(prompts.ids).logits
    assert (hooked(prompts.ids).logits - before).abs().max() > TOLERANCE
    assert made.stock(prompts.ids).logits.equal(before)


def test_prompts_outside_the_window_and_of_no_such_length_are_refused() -> None:
    made = subject(MODELS[0])
    with pytest.raises(PlanError, match=r"at most 1152 tokens \(the window\), got 1168"):
        check(made, needle_prompts(made, 128, 1), 1040)
    with pytest.raises(SampleError, match=r"500 are needed"):
        needle_prompts(made, 128, 500)


def test_heads_are_chosen_as_the_package_chooses_them() -> None:
    torch.manual_seed(0)
    pattern = (3 * torch.randn(5, 8, 33)).softmax(-1)
    pattern[0, 3] = pattern[0, 1]
    own = keep_top(SCORES["entropy"](pattern[:, :, None]), torch.full((5, 1), 4))
    assert top_heads(pattern).equal(own.squeeze(-1))


def test_a_step_is_counted_without_what_comes_before() -> None:
    def run(new: int) -> None:
        torch.zeros(1)
        for _ in range(new):
            add(torch.ones(2))

    def add(one: torch.Tensor) -> torch.Tensor:
        return one + 1

    assert per_step(run) == {"operations a step": 2, "calls a step": 1}


def _peer(logits: float) -> Callable[[Subject, Prompts], Any]:
    return lambda made, prompts: lambda new: Output(torch.zeros(new, 1).long(), torch.full((new, 1, 4096), logits))


def test_a_peer_is_timed_only_if_it_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_made: Subject, _prompts: Prompts) -> Any:
        raise ImportError("no module")

    def cannot(_made: Subject, _prompts: Prompts) -> Any:
        raise peers.CannotDo("no hook")

    fakes = {"wrong": _peer(1e6), "missing": missing, "cannot": cannot}
    monkeypatch.setattr(peers, "PEERS", fakes)
    rows = peers.measure(subject(MODELS[0], "transformers"), 128, 1, 2, 1)
    assert [row.way for row in rows] == [BASE, "plain, eager", "by hand", "ours"]
    assert rows[0].notes["missing"] == "cannot be imported (no module)"
    assert rows[0].notes["cannot"] == "no hook"
    assert "other logits" in str(rows[0].notes["wrong"])


def test_tokens_a_second_are_those_of_the_whole_batch() -> None:
    rows = measure_throughput(subject(MODELS[1]), 128, 1, 2, 1)
    assert [row.way for row in rows] == [BASE, "ours", "runner"]
    assert [row.notes["new tokens a second"] for row in rows] == [2 / row.seconds for row in rows]


def test_an_exponent_comes_with_an_interval_that_holds_it() -> None:
    sizes = [256.0, 512.0, 1024.0, 2048.0, 4096.0]
    noise = np.random.default_rng(0).normal(0, 0.1, (400, 5))
    held = 0
    for errors in noise:
        slope, low, high = exponent(sizes, [2.0 * t**1.5 * np.exp(e) for t, e in zip(sizes, errors, strict=True)])
        assert low < slope < high
        held += low < 1.5 < high
    assert 0.92 < held / len(noise) < 0.98
    with pytest.raises(SampleError, match=r"at least 3 sizes, got 2"):
        exponent([1, 2], [1, 2])


def test_prefills_are_timed_and_weighed_at_every_length() -> None:
    rows = measure(subject(MODELS[1]), (64, 96, 128), 96, 1, "cpu")
    assert [row.way for row in rows] == [*WAYS, *WAYS, "sdpa", "plan, one pass", "plan, again"]
    assert min(float(row.notes["MiB"]) for row in rows) > 0
    fitted = {row.way for row in rows if "time exponent" in row.notes}
    assert fitted == {"sdpa", "plan, one pass", "plan, again"}  # eager has two lengths
    assert all(float(row.notes["memory exponent low"]) < float(row.notes["memory exponent high"]) for row in rows[-3:])
