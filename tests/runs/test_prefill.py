"""Prompts that begin alike are read piece by piece, and what follows is what each prompt alone gives."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepHeads, KeepTopHeads, Plan, ResetState
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs import launch, prefill
from segregation.runs.generate import generate
from segregation.runs.launch import Dropping, Prefills, Row, run_rows
from segregation.runs.loglikelihood import loglikelihood

NEW = 4
FAMILIES = ("recurrentgemma", "jamba", "bamba", "qwen3_next", "lfm2", "zamba", "mamba", "minimax", "kimi_linear")


@pytest.fixture(scope="module", params=FAMILIES)
def any_model(request: pytest.FixtureRequest, build: Callable[..., HybridModel]) -> HybridModel:
    return build(request.param)


def tokens(seed: int, n: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 259, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def haystack(n: int, at: Sequence[int]) -> list[tuple[int, ...]]:
    """One haystack with the same needle at several places, longer than every window."""
    hay, needle = tokens(0, n), tokens(1, 7)
    return [(*hay[:place], *needle, *hay[place:]) for place in at]


DEPTHS = [*haystack(120, (3, 30, 60, 61, 90, 119)), tokens(0, 120), tokens(2, 50)]
"""Depths of one haystack (two of them next to each other), the haystack alone, and a prompt of its own."""


def logits_of(model: HybridModel, prompts: Sequence[tuple[int, ...]], plan: Plan) -> tuple[list[Tensor], list[str]]:
    """The logits (``new d_vocab``) after each prompt, fed fixed tokens, and how each prompt was read."""
    prefills = Prefills(model)
    rows, memory = prefills.of([Row(number, prompt, plan) for number, prompt in enumerate(prompts)])
    found: list[Tensor] = []

    def step(running: Tensor, number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        found.append(logits)
        return torch.full_like(running, 7 + number), torch.full_like(running, number + 1 == NEW, dtype=torch.bool)

    run_rows(model, rows, memory, NEW, step)
    place = {row.index: number for number, row in enumerate(rows)}
    ways = [prefills.way(row) for row in sorted(rows, key=lambda row: row.index)]
    return [torch.stack(found, dim=1)[place[number]] for number in range(len(prompts))], ways


@pytest.fixture
def forwards_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "FORWARD", 0)


@torch.no_grad()
def test_pieces_give_the_logits_of_each_prompt_alone(any_model: HybridModel, forwards_cost_nothing: None) -> None:
    """The windows of the models that have one (16 tokens) are full long before a piece begins.

    Qwen3-Next's delta rule in chunks rounds more: 1.4e-5 here, 4.3e-5 between one forward and one token at a time.
    """
    found, ways = logits_of(any_model, DEPTHS, Plan())
    assert ways == ["in pieces"] * len(DEPTHS)
    for prompt, logits in zip(DEPTHS, found, strict=True):
        (alone,), (way,) = logits_of(any_model, [prompt], Plan())
        assert way == "whole"
        assert (logits - alone).abs().max() < (2e-5 if any_model.family.name == "qwen3_next" else 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rule", [AblateHeads(), KeepHeads(((1, 0), (3, 2))), AblateMixer()])
def test_plans_that_act_alike_in_the_prefill_go_on_as_well(build, rule, forwards_cost_nothing) -> None:
    model = build("jamba")
    found, ways = logits_of(model, DEPTHS, Plan(rule))
    assert set(ways) == {"in pieces"}
    for prompt, logits in zip(DEPTHS, found, strict=True):
        (alone,), _ = logits_of(model, [prompt], Plan(rule))
        assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    (plain,), _ = logits_of(model, DEPTHS[:1], Plan())
    assert not torch.allclose(plain, found[0], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rule", [KeepTopHeads(2), ResetState(every=5)])
def test_plans_that_may_not_act_alike_read_every_prompt_whole(build, rule, forwards_cost_nothing) -> None:
    _, ways = logits_of(build("jamba"), DEPTHS, Plan(rule))
    assert set(ways) == {"whole"}


@torch.no_grad()
def test_a_model_that_does_not_go_on_reads_every_prompt_whole(build, forwards_cost_nothing) -> None:
    model = build("jamba")
    failed = {"name": "several tokens may follow a cache", "outcome": "fail"}
    model.description["self_checks"] = [failed]
    assert set(logits_of(model, DEPTHS, Plan())[1]) == {"whole"}
    model.description["self_checks"] = [{**failed, "outcome": "pass"}]
    assert set(logits_of(model, DEPTHS, Plan())[1]) == {"in pieces"}


def test_whether_a_model_goes_on_is_measured_once(build, monkeypatch) -> None:
    """A scan that starts anew at every forward, as transformers' own does."""
    sound, broken = build("jamba"), build("jamba")
    assert prefill.goes_on(sound)
    monkeypatch.setattr("segregation.models.continuing.state_before", lambda *_: None)
    assert not prefill.goes_on(broken)
    monkeypatch.setattr(prefill, "ask", lambda *_: pytest.fail("measured again"))
    assert prefill.goes_on(sound) and not prefill.goes_on(broken)


def test_a_family_that_reads_one_token_by_another_function_reads_prompts_whole(build) -> None:
    assert not prefill.goes_on(build("zamba2"))


@torch.no_grad()
def test_a_model_that_carries_a_plan_reads_prompts_whole(build, forwards_cost_nothing) -> None:
    carrying = build("jamba").intervene(Plan(AblateHeads(during=Phase.DECODE)))
    assert set(logits_of(carrying, DEPTHS, Plan())[1]) == {"whole"}


@torch.no_grad()
def test_short_prompts_are_read_side_by_side_and_long_ones_in_pieces(build) -> None:
    model = build("jamba")
    short, long = haystack(30, (5, 15, 25)), haystack(180, (100, 120, 140, 160, 170, 175))
    assert logits_of(model, short, Plan())[1] == ["whole"] * 3
    assert logits_of(model, long, Plan())[1] == ["in pieces"] * 6


def test_records_have_the_tokens_of_one_by_one_and_say_how_the_prompt_was_read(model, monkeypatch) -> None:
    text = "abcdefgh ijkl " * 9
    samples = [Sample(str(at), f"{text[:at]} needle {text[at:]}", " x") for at in (10, 60, 100)]
    plans = [Plan(), Plan(KeepTopHeads(2, during=Phase.GENERATION)), Plan(AblateHeads(during=Phase.DECODE))]
    alone = {
        (record.sample_id, record.plan_hash): record.tokens
        for record in generate(model, samples, plans, max_new_tokens=6, batch_size=1)
    }
    monkeypatch.setattr(launch, "FORWARD", 0)
    records = list(generate(model, samples, plans, max_new_tokens=6))
    assert {(record.sample_id, record.plan_hash): record.tokens for record in records} == alone
    assert {record.provenance["prefill"] for record in records} == {"in pieces"}
    over_batches = list(generate(model, samples, plans, max_new_tokens=6, batch_size=4))
    assert {(record.sample_id, record.plan_hash): record.tokens for record in over_batches} == alone


def test_choices_are_scored_alike_after_pieces(model, monkeypatch) -> None:
    text = "abcdefgh ijkl " * 9
    samples = [Sample(str(at), f"{text[:at]} needle {text[at:]}", "xy", choices=("xy", "z")) for at in (60, 100)]
    alone = [record.loglikelihoods for record in loglikelihood(model, samples, batch_size=1)]
    monkeypatch.setattr(launch, "FORWARD", 0)
    together = [record.loglikelihoods for record in loglikelihood(model, samples)]
    assert together == [pytest.approx(scores, abs=1e-5) for scores in alone]


def test_gradients_work_after_a_run(model) -> None:
    """Runs are made in inference mode, which leaves nothing of itself behind."""
    sample = Sample("a", "abcdefgh ijkl " * 3, " x")
    plan = Plan(KeepTopHeads(2))
    list(generate(model, [sample], plan, max_new_tokens=3))
    logits = model.intervene(plan).trace(sample, trace=False).logits
    logits[0, -1].max().backward()
    weight = model.out_proj(model.attention_layers[0])._module.weight
    assert weight.grad is not None and weight.grad.abs().max() > 0
    model.hf_model.zero_grad(set_to_none=True)


def test_rows_that_are_done_change_no_other_until_they_are_dropped(model, monkeypatch) -> None:
    """A GPU is asked which rows are done every few steps only, and a CPU drops them when they are many."""
    samples = [Sample(str(n), "abcdefgh ijkl"[:n], "xyz", choices=("xyz", "y", "zq")) for n in (3, 9, 12)]
    config = model.hf_model.generation_config
    plain = [record.tokens for record in generate(model, samples, max_new_tokens=9)]
    scores = [record.loglikelihoods for record in loglikelihood(model, samples)]
    monkeypatch.setattr(config, "eos_token_id", [1, plain[1][2]])
    cut = [record.tokens for record in generate(model, samples, max_new_tokens=9)]
    assert len(cut[1]) <= 3
    for way in (Dropping(), Dropping(every=4), Dropping(share=0.5), Dropping(every=2, share=0.4)):
        for module in ("generate", "loglikelihood"):
            monkeypatch.setattr(f"segregation.runs.{module}.dropping", lambda *_, way=way: way)
        assert [record.tokens for record in generate(model, samples, max_new_tokens=9)] == cut
        assert [record.loglikelihoods for record in loglikelihood(model, samples)] == [
            pytest.approx(own, abs=1e-5) for own in scores
        ]
