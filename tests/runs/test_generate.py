import pytest
import torch

from segregation.errors import PlanError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepTopHeads, Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs import fitting, launch
from segregation.runs.generate import generate, listed
from segregation.runs.record import Record

NEW = 8
PLANS = [
    Plan(),
    Plan(AblateHeads(during=Phase.GENERATION)),
    Plan(KeepTopHeads(2, during=Phase.GENERATION)),
    Plan(KeepTopHeads(1, score="l2", during=Phase.DECODE)),
    Plan(KeepTopHeads(1, during=Phase.LAST), AblateMixer(during=Phase.DECODE)),
    Plan(KeepTopHeads(2)),
    Plan(AblateHeads(during=Phase.PREFILL)),
]


@pytest.fixture(scope="module")
def naive(model: HybridModel, samples: list[Sample]) -> dict[tuple[str, str], tuple[int, ...]]:
    """One prompt and plan at a time, by transformers' own generate in an intervened trace."""
    tokens = {}
    for sample in samples:
        for plan in PLANS:
            with torch.no_grad():
                out = model.intervene(plan).generate(sample, max_new_tokens=NEW, do_sample=False)
            tokens[sample.id, plan.hash] = tuple(out[0, len(model.encode(sample)) :].tolist())
    return tokens


def by_key(records) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(record.sample_id, record.plan_hash): record.tokens for record in records}


@pytest.mark.parametrize("batch_size", [None, 5, 9])
def test_shared_prefills_give_the_tokens_of_one_by_one(model, samples, naive, batch_size):
    records = list(generate(model, samples, PLANS, max_new_tokens=NEW, batch_size=batch_size))
    assert [(r.sample_id, r.plan) for r in records] == [(s.id, p.to_json()) for s in samples for p in PLANS]
    assert by_key(records) == naive
    assert len(set(naive.values())) > len(samples)  # the plans do something


@pytest.mark.parametrize("batch_size", [None, 4, 7])
def test_prefills_in_padded_batches_give_the_same(model, samples, naive, monkeypatch, batch_size):
    """What an accelerator does: prompts of any length prefilled together."""
    monkeypatch.setattr(fitting, "PADDING", float("inf"))
    assert by_key(generate(model, samples, PLANS, max_new_tokens=NEW, batch_size=batch_size)) == naive


def test_the_empty_plan_gives_the_tokens_of_plain_transformers(model, samples):
    for record, sample in zip(generate(model, samples, max_new_tokens=NEW), samples, strict=True):
        model.reset()
        with torch.no_grad():
            plain = model._module.generate(torch.tensor([model.encode(sample)]), max_new_tokens=NEW, do_sample=False)
        assert record.tokens == tuple(plain[0, record.prompt_tokens :].tolist())


def test_a_row_ends_at_the_end_of_sequence_and_the_others_go_on(model, samples, naive):
    end = naive[samples[1].id, PLANS[0].hash][2]
    config = model.hf_model.generation_config
    before, config.eos_token_id = config.eos_token_id, [1, end]
    try:
        got = by_key(generate(model, samples, PLANS, max_new_tokens=NEW))
    finally:
        config.eos_token_id = before
    cut = {key: tokens[: tokens.index(end) + 1] if end in tokens else tokens for key, tokens in naive.items()}
    assert got == cut
    assert len({len(tokens) for tokens in cut.values()}) > 1


def test_a_model_that_carries_a_plan_keeps_it_and_its_records_say_so(model, samples, naive):
    carrying = model.intervene(PLANS[6])
    assert by_key(generate(carrying, samples, max_new_tokens=NEW)) == {
        (sample.id, PLANS[6].hash): naive[sample.id, PLANS[6].hash] for sample in samples
    }
    one_head = Plan(AblateHeads(((model.attention_layers[0], 0),)))
    twice = carrying.intervene(one_head)
    (record,) = generate(twice, samples[:1], PLANS[2], max_new_tokens=2)
    assert record.plan == Plan(*PLANS[6].rules, *one_head.rules, *PLANS[2].rules).to_json()
    with pytest.raises(PlanError, match="contradict each other"):
        model.intervene(PLANS[1]).intervene(PLANS[2])
    assert model.carried == ()
    assert carrying.carried == (PLANS[6],)


def test_an_intervention_that_is_no_plan_has_no_records(model, samples):
    class Nothing:
        def enter(self, model: HybridModel) -> HybridModel:
            return Plan().enter(model)

    with pytest.raises(PlanError, match="records hold plans, which are data"):
        generate(model.intervene(Nothing()), samples)


def test_unsafe_ways_are_not_used_where_a_check_failed(build, samples, monkeypatch):
    model = build("recurrentgemma")
    expected = by_key(generate(model, samples[:3], PLANS[:3], max_new_tokens=3))
    sizes = []
    run = launch.run_rows
    monkeypatch.setattr(
        "segregation.runs.generate.run_rows", lambda m, rows, *a: (sizes.append(len(rows)), run(m, rows, *a))
    )
    model.can_batch = False
    assert by_key(generate(model, samples[:3], PLANS[:3], max_new_tokens=3)) == expected
    assert set(sizes) == {1}


def test_no_prefill_is_shared_where_forks_are_switched_off(build, samples, monkeypatch):
    model = build("jamba")
    expected = by_key(generate(model, samples[:1], PLANS[:3], max_new_tokens=3))
    rows = []
    prefill = launch.prefill
    monkeypatch.setattr(
        launch, "prefill", lambda m, prompts, *a, **kw: (rows.append(len(prompts)), prefill(m, prompts, *a, **kw))[1]
    )
    assert by_key(generate(model, samples[:1], PLANS[:3], max_new_tokens=3)) == expected and rows == [1]
    rows.clear()
    model.can_fork = False
    assert by_key(generate(model, samples[:1], PLANS[:3], max_new_tokens=3)) == expected and rows == [1, 1, 1]


def test_plans_that_prefill_alike_share_it(model, samples, naive, monkeypatch):
    plans = [Plan(AblateHeads(during=Phase.PREFILL)), Plan(AblateHeads(during=Phase.ALL))]
    expected: dict[str, tuple[int, ...]] = {}
    for plan in plans:
        with torch.no_grad():
            out = model.intervene(plan).generate(samples[1], max_new_tokens=NEW, do_sample=False)
        expected[plan.hash] = tuple(out[0, len(model.encode(samples[1])) :].tolist())
    rows = []
    prefill = launch.prefill
    monkeypatch.setattr(
        launch, "prefill", lambda m, prompts, *a, **kw: (rows.append(len(prompts)), prefill(m, prompts, *a, **kw))[1]
    )
    records = list(generate(model, samples[1:2], plans, max_new_tokens=NEW))
    assert {record.plan_hash: record.tokens for record in records} == expected
    assert rows == [1]


def test_records_say_where_they_come_from(model, samples):
    record = next(iter(generate(model, samples[:1], PLANS[2], max_new_tokens=3)))
    assert Record.from_json(record.to_json()) == record
    assert (record.kind, record.settings, record.plan_hash) == ("generate", {"max_new_tokens": 3}, PLANS[2].hash)
    assert record.model["name"].startswith("random-")
    assert record.text == model.tokenizer.decode(list(record.tokens), skip_special_tokens=True)


def test_refusals_come_before_anything_runs(build, samples, model):
    with pytest.raises(PlanError, match=r"acts on DECODE positions only, and generating one token has none"):
        generate(model, samples, PLANS[3], max_new_tokens=1)
    with pytest.raises(PlanError, match="max_new_tokens must be at least 1, got 0"):
        generate(model, samples, max_new_tokens=0)
    with pytest.raises(PlanError, match=r"k must be in 0\.\.4"):
        generate(model, samples, Plan(KeepTopHeads(9)))
    with pytest.raises(PlanError, match="batch_size must be a whole number of at least 1 row, got 0"):
        list(generate(model, samples, batch_size=0))
    small = build("jamba", max_position_embeddings=24)
    with pytest.raises(SampleError, match=r"sample '22': a prompt of 23 tokens and 4 new ones need 27 positions"):
        generate(small, [sample for sample in samples if sample.id == "22"], max_new_tokens=4)


@pytest.mark.parametrize(
    ("samples", "plans", "error", "message"),
    [
        ([], AblateHeads(), PlanError, r"give Plans, one or a list of them, got AblateHeads\("),
        ([], [AblateHeads()], PlanError, r"is no Plan; make one: sg.Plan\(rule\)"),
        ([], [], PlanError, r"under no plans, got \[\]; .* give Plan\(\)"),
        ("hello", Plan(), SampleError, "give Samples, one or a list of them, got 'hello'"),
        (["hello"], Plan(), SampleError, "'hello' is no Sample; make one: sg.Sample"),
    ],
)
def test_what_is_no_sample_or_plan_is_refused(samples, plans, error, message):
    with pytest.raises(error, match=message):
        listed(samples, plans)


def test_a_lone_sample_is_a_list_of_it(samples):
    assert listed(samples[0], [Plan()]) == ([samples[0]], [Plan()])
