import pytest
import torch

from segregation.errors import PlanError, SampleError
from segregation.interventions.apply import enter
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs import launch
from segregation.runs import loglikelihood as module
from segregation.runs.generate import generate
from segregation.runs.launch import Row
from segregation.runs.loglikelihood import loglikelihood
from segregation.runs.record import Record

PLANS = [
    Plan(),
    Plan(AblateHeads(during=Phase.GENERATION)),
    Plan(KeepTopHeads(1, during=Phase.DECODE)),
    Plan(KeepTopHeads(2)),
    Plan(AblateHeads(during=Phase.PREFILL)),
]


def one_at_a_time(model: HybridModel, sample: Sample, text: str, plan: Plan) -> float:
    """The sum of log-softmax, the continuation fed token by token after the whole prompt, under the plan."""
    prompt, tokens = model.encode(sample), model.encode_continuation(text)
    edited = enter(model, plan)
    picked: list[torch.Tensor] = []

    def run() -> None:
        model.reset()
        model.run.prompt_lengths, model.run.rows = torch.tensor([len(prompt)]), None
        cache = model.new_cache()
        piece = torch.tensor([prompt])
        for token in tokens:
            logits = model.hf_model(piece, past_key_values=cache, use_cache=True).logits[0, -1]
            picked.append(logits.log_softmax(-1)[token])
            piece = torch.tensor([[token]])

    with torch.no_grad():
        edited.interleave(run)
    return float(torch.stack(picked).sum())


@pytest.fixture(scope="module")
def stepwise(model, samples) -> dict[tuple[str, str], tuple[float, ...]]:
    """Token by token, the scores of every sample's choices under every plan."""
    return {
        (sample.id, plan.hash): tuple(one_at_a_time(model, sample, text, plan) for text in sample.choices)
        for sample in samples
        for plan in PLANS
    }


@pytest.mark.parametrize("share_from", [2, 10**6])
def test_equals_stepwise_decoding_under_every_plan(model, samples, stepwise, monkeypatch, share_from):
    monkeypatch.setattr(module, "CPU_SHARE_FROM", share_from)
    records = list(loglikelihood(model, samples, PLANS, batch_size=7))
    assert len({record.key for record in records}) == len(samples) * len(PLANS) == len(records)
    for record in records:
        assert record.loglikelihoods == pytest.approx(stepwise[record.sample_id, record.plan_hash], abs=2e-5)
        assert record.token_counts == (3, 1, 2)


def test_equals_the_sum_of_log_softmax_of_plain_transformers(model, samples):
    for record, sample in zip(loglikelihood(model, samples), samples, strict=True):
        for value, text in zip(record.loglikelihoods, sample.choices, strict=True):
            prompt, tokens = model.encode(sample), model.encode_continuation(text)
            model.reset()
            with torch.no_grad():
                logits = model._module(torch.tensor([prompt + tokens])).logits[0].double().log_softmax(-1)
            expected = sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(tokens))
            assert value == pytest.approx(expected, abs=1e-5)


def test_a_sample_without_choices_scores_its_target(model):
    record = next(iter(loglikelihood(model, [Sample(id="a", prompt="abc", target="de")])))
    assert (len(record.loglikelihoods), record.token_counts) == (1, (2,))
    assert Record.from_json(record.to_json()) == record


def test_rows_that_read_the_same_are_read_once(model, monkeypatch):
    sample = Sample(id="a", prompt="abc", target="d", choices=("d", "e", "f", "g"))
    widths = []
    handle = model._module.register_forward_pre_hook(
        lambda _m, _a, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        record = next(iter(loglikelihood(model, [sample])))
    finally:
        handle.remove()
    assert widths == [(1, 4)]
    assert len(set(record.loglikelihoods)) == 4


def test_refusals(model):
    one = Sample(id="a", prompt="abc", target="d")
    with pytest.raises(
        PlanError, match=r"acts on DECODE positions only, and scoring sample 'a' has none .*LAST\|DECODE"
    ):
        loglikelihood(model, [one], Plan(AblateHeads(during=Phase.DECODE)))
    long = Sample(id="b", prompt="a" * 300, target="d")
    if model.max_positions:
        with pytest.raises(SampleError, match=r"sample 'b': a prompt of 301 tokens"):
            loglikelihood(model, [long])


@pytest.mark.parametrize("share_from", [2, 10**6])
def test_a_row_is_greedy_where_greedy_decoding_writes_its_continuation(model, samples, monkeypatch, share_from):
    monkeypatch.setattr(module, "CPU_SHARE_FROM", share_from)
    written = {record.sample_id: record.tokens for record in generate(model, samples, max_new_tokens=3)}
    rows, continuations = [], []
    for sample in samples:
        best = written[sample.id]
        other = (best[0], (best[1] + 1) % model.d_vocab) if len(best) > 1 else ((best[0] + 1) % model.d_vocab,)
        for tokens in (best, best[:1], other):
            rows.append(Row(len(rows), tuple(model.encode(sample)), Plan()))
            continuations.append(tokens)
    scored = {one.row.index: one.greedy for one in module.score_rows(model, rows, continuations, batch_size=5)}
    assert [scored[index] for index in range(len(rows))] == [True, True, False] * len(samples)


def test_rows_that_read_the_same_but_end_their_prompt_elsewhere_are_scored_apart(model: HybridModel):
    plan = Plan(AblateHeads(during=Phase.GENERATION))
    samples = [Sample(id="a", prompt="hello wo", target="rldx"), Sample(id="b", prompt="hello world", target="x")]
    alone = [record.loglikelihoods for sample in samples for record in loglikelihood(model, [sample], plan)]
    together = {record.sample_id: record.loglikelihoods for record in loglikelihood(model, samples, plan)}
    assert together["a"] == pytest.approx(alone[0], abs=2e-5)
    assert together["b"] == pytest.approx(alone[1], abs=2e-5)


def test_choices_share_the_prefill_under_a_plan_that_acts_in_it(model: HybridModel, monkeypatch) -> None:
    """Two choices under two plans that do the same in the prefill: one row is read for the four."""
    sample = Sample("a", "abcdefgh ijkl " * 6, "xy", choices=("xy", "z"))
    plans = [Plan(AblateHeads(during=Phase.PREFILL)), Plan(AblateHeads())]
    alone = [next(iter(loglikelihood(model, [sample], plan, batch_size=1))).loglikelihoods for plan in plans]
    read: list[int] = []
    real = launch.prefill
    monkeypatch.setattr(launch, "prefill", lambda m, prompts, *a: (read.append(len(prompts)), real(m, prompts, *a))[1])
    together = [record.loglikelihoods for record in loglikelihood(model, [sample], plans)]
    assert together == [pytest.approx(scores, abs=5e-5) for scores in alone]
    assert read == [1]
