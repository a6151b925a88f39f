"""Rules about tokens on models, against a plain model whose eager attention is edited row by row in a loop."""

import dataclasses
import importlib

import pytest
import torch
from torch import Tensor

from segregation.errors import PlanError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.presets import paper
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.runs.generate import generate
from segregation.runs.loglikelihood import loglikelihood
from tests.conftest import WINDOW, random_module

PROMPT = "ab NEEDLE cd efgh NEEDLE ij"
SPANS = {"needle": ((3, 9), (18, 24)), "context": ((0, 17),), "end": ((23, 25),)}
SAMPLE = Sample(id="twice", prompt=PROMPT, target="xyz", spans=SPANS, choices=("xyz", "y"))
CUT = 26  # tokens of prompt where a forward is teacher-forced; the byte tokenizer puts <bos> in front
RULES = [
    HideTokens("needle"),
    HideTokens("context", but="needle"),
    HideTokens("needle+end", occurrence=0),
    OnlyTokens("needle"),
    OnlyTokens("needle", occurrence=1),
    OnlyTokens("needle", but="context"),
    OnlyTokens("end+new"),
    HideTokens("new"),
    BalanceTokens("needle"),
    BalanceTokens("needle", renormalize=False),
    HideTokens("needle", renormalize=False),
    OnlyTokens("needle", causal=False),
    BalanceTokens("needle", causal=False),
    HideAll(),
    paper(HideTokens("needle")),
    paper(OnlyTokens("needle")),
    paper(BalanceTokens("needle")),
]
SOME_PHASES = (Phase.PREFILL, Phase.LAST | Phase.DECODE, Phase.ALL)


def with_spans(sample: Sample, **spans) -> Sample:
    return dataclasses.replace(sample, spans={**sample.spans, **spans})


def tokens_of(model: HybridModel, name: str, occurrence="all", sample: Sample = SAMPLE) -> set[int]:
    """One token a byte after <bos>, so character c is token c + 1."""
    n = len(model.encode(sample))
    if name in ("prompt", "new", "everything"):
        return {"prompt": set(range(CUT)), "new": set(range(CUT, n)), "everything": set(range(n))}[name]
    chosen = sample.spans[name] if occurrence == "all" else [sample.spans[name][occurrence]]
    return {c + 1 for start, end in chosen for c in range(start, end)}


def named(model: HybridModel, rule) -> set[int]:
    found = set()
    for name in rule.span.split("+"):
        chosen = rule.occurrence if name not in ("prompt", "new", "everything") else "all"
        if chosen != "all" and chosen >= len(SPANS[name]):
            continue
        found |= tokens_of(model, name, chosen)
    return found - (tokens_of(model, rule.but) if rule.but else set())


def phase_of(position: int) -> Phase:
    return Phase.PREFILL if position < CUT - 1 else Phase.LAST if position == CUT - 1 else Phase.DECODE


def edited_by_definition(pattern: Tensor, rule, names: set[int], window: int | None, heads) -> Tensor:
    """spec.md section 3, row by row, in fp64."""
    new = pattern.clone()
    batch, n_heads, n, _ = pattern.shape
    for b in range(batch):
        for h in range(n_heads):
            for i in range(n):
                if phase_of(i) not in rule.during or h not in heads:
                    continue
                seen = {j for j in range(i + 1) if window is None or j > i - window}
                row = pattern[b, h, i]
                if isinstance(rule, HideAll):
                    new[b, h, i] = 0
                    continue
                kept = (set(range(n)) - names if isinstance(rule, HideTokens) else names) & seen
                if not kept and not (not rule.causal and phase_of(i) == Phase.PREFILL):
                    continue
                made = torch.zeros_like(row)
                if isinstance(rule, BalanceTokens):
                    over = kept
                    if not rule.causal and phase_of(i) == Phase.PREFILL:
                        over = kept | {j for j in names if phase_of(j) == Phase.PREFILL and j > i}
                    rows = [i]
                    if rule.summed_over == "prefill" and phase_of(i) == Phase.PREFILL:
                        rows = [r for r in range(n) if phase_of(r) == Phase.PREFILL]
                    mass = sum(float(pattern[b, h, r, j]) for r in rows for j in names if j <= r)
                    for j in over:
                        made[j] = (1.0 if rule.renormalize else mass) / len(over)
                else:
                    for j in kept:
                        made[j] = row[j]
                    if rule.renormalize and kept:
                        made = made / made.sum()
                new[b, h, i] = made
    return new


def by_definition(model: HybridModel, rule, monkeypatch, layers=None, heads=None) -> Tensor:
    """Logits of a plain, unwrapped twin of the model whose eager attention is edited by definition."""
    family = model.family.name
    plain = random_module(family)
    plain.set_attn_implementation("eager")
    module = importlib.import_module(type(plain).__module__)
    original = module.eager_attention_forward
    names = set() if isinstance(rule, HideAll) else named(model, rule)

    def attention(layer, query, key, value, mask, scaling, **kwargs):
        _, weights = original(layer, query, key, value, mask, scaling=scaling, **kwargs)
        here = layer.layer_idx
        if layers is not None and here not in layers:
            edited = weights.double()
        else:
            chosen = range(model.n_heads) if heads is None else [h for at, h in heads if at == here]
            edited = edited_by_definition(weights.double(), rule, names, model.window, chosen)
        spread = value.double().repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return (edited @ spread).transpose(1, 2).contiguous().to(query), weights

    monkeypatch.setattr(module, "eager_attention_forward", attention)
    with torch.no_grad():
        return plain(torch.tensor([model.encode(SAMPLE)])).logits


def logits(model: HybridModel, *rules, sample=SAMPLE, **kwargs) -> Tensor:
    with torch.no_grad():
        return model.intervene(Plan(*rules)).trace(sample, trace=False, prompt_lengths=[CUT], **kwargs).logits


@pytest.mark.parametrize("during", SOME_PHASES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_is_what_its_definition_says(model: HybridModel, rule, during, monkeypatch):
    if isinstance(rule, HideTokens) and rule.span == "new" and Phase.DECODE not in during:
        pytest.skip("a rule that can act nowhere is refused")
    rule = dataclasses.replace(rule, during=during)
    got = logits(model, rule)
    expected = by_definition(model, rule, monkeypatch)
    assert torch.allclose(got, expected, atol=3e-5)
    changes = not torch.allclose(got, logits(model), atol=1e-4)
    first_left_the_window = model.window and getattr(rule, "occurrence", "all") == 0 and during == Phase.GENERATION
    assert changes != bool(first_left_the_window and rule.span == "needle")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_eager_and_sdpa_agree(model: HybridModel, rule):
    sdpa = logits(model, rule)
    model.hf_model.set_attn_implementation("eager")
    try:
        eager = logits(model, rule)
        with torch.no_grad():
            weights = model.intervene(Plan(rule)).trace(SAMPLE, trace=False, output_attentions=True).attentions
        with torch.no_grad(), model.intervene(Plan(rule)).trace(SAMPLE):
            pattern = model.pattern(model.attention_layers[0]).save()
    finally:
        model.hf_model.set_attn_implementation("sdpa")
    assert torch.allclose(eager, sdpa, atol=5e-6)
    assert torch.allclose(weights[0], pattern, atol=1e-6)


def test_layers_and_heads_are_chosen(model: HybridModel, monkeypatch):
    first, second = model.attention_layers[:2]
    got = logits(model, HideTokens("needle", layers=(second,)))
    assert torch.allclose(got, by_definition(model, HideTokens("needle"), monkeypatch, layers=(second,)), atol=3e-5)
    heads = ((first, 0), (second, 3))
    got = logits(model, OnlyTokens("needle", heads=heads))
    assert torch.allclose(got, by_definition(model, OnlyTokens("needle"), monkeypatch, heads=heads), atol=3e-5)


def test_rows_outside_the_phase_are_untouched_bit_for_bit(model: HybridModel):
    layer = model.attention_layers[0]

    def z(*rules) -> Tensor:
        with torch.no_grad(), model.intervene(Plan(*rules)).trace(SAMPLE, prompt_lengths=[CUT]):
            return_z = model.z(layer).save()
        return return_z

    base, hidden = z(), z(HideTokens("needle", during=Phase.LAST))
    changed = (base != hidden).any(-1).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [CUT - 1]
    before = z(HideTokens("needle"))
    same = (base == before).all(-1).all(-1)[0]
    assert same[:4].all()  # <bos>, "a", "b", " ": nothing of the needle is behind them


def test_rows_sum_to_one_by_default_and_not_in_the_papers_way(model: HybridModel):
    layer = model.attention_layers[0]

    def sums(rule) -> Tensor:
        with torch.no_grad(), model.intervene(Plan(rule)).trace(SAMPLE):
            total = model.pattern(layer).sum(-1).save()
        return total

    for rule in (HideTokens("needle"), OnlyTokens("needle"), BalanceTokens("needle")):
        assert torch.allclose(sums(rule), torch.ones(()), atol=1e-6)
    assert (sums(paper(HideTokens("needle")))[..., 10:] < 1 - 1e-4).any()
    only = sums(paper(OnlyTokens("needle")))
    assert only[..., :4].eq(0).all()  # rows before the needle
    shared = sums(paper(BalanceTokens("needle")))[0, 0, : CUT - 1]
    assert shared.max() > 1.5  # the sum of many rows
    assert torch.allclose(shared, shared[0].expand_as(shared), rtol=1e-5)


def test_only_is_hiding_everything_else_and_hiding_all_is_ablating(model: HybridModel):
    rest = HideTokens("everything", but="needle")
    assert torch.equal(logits(model, OnlyTokens("needle")), logits(model, rest))
    for during in SOME_PHASES:
        hidden, ablated = logits(model, HideAll(during=during)), logits(model, AblateHeads(during=during))
        assert torch.allclose(hidden, ablated, atol=1e-6)
    halves = (HideTokens("needle", occurrence=0), HideTokens("needle", occurrence=1))
    assert torch.allclose(logits(model, *halves), logits(model, HideTokens("needle")), atol=1e-5)


def test_the_recurrent_layers_read_every_token(model: HybridModel):
    """Before the first attention layer nothing changes; a 2-D mask with zeros is not such a rule: it blinds them."""
    first = model.recurrent_layers[0]

    def state(plan: Plan) -> Tensor:
        with torch.no_grad(), model.intervene(plan).trace(SAMPLE):
            found = model.state(first).recurrent.save()
        return found

    assert torch.equal(state(Plan(HideTokens("needle"))), state(Plan()))
    ids = torch.tensor([model.encode(SAMPLE)])
    mask = torch.ones_like(ids)
    mask[0, sorted(tokens_of(model, "needle"))] = 0
    model.reset()
    with torch.no_grad():
        blinded = model._module(ids, attention_mask=mask).logits[:, -1]
    assert not torch.allclose(blinded, logits(model, HideTokens("needle"))[:, -1], atol=1e-2)


def test_batches_have_their_own_spans_and_padding(model: HybridModel):
    short = Sample(id="short", prompt="xx NEEDLE y", target="z", spans={"needle": ((3, 9),)})
    samples = [short, SAMPLE, with_spans(short, needle=((0, 2),))]
    for rule in (HideTokens("needle"), BalanceTokens("needle", during=Phase.PREFILL), paper(BalanceTokens("needle"))):
        edited = model.intervene(Plan(rule))
        with torch.no_grad():
            batch = edited.trace(samples, trace=False).logits
            for row, sample in enumerate(samples):
                alone = edited.trace(sample, trace=False).logits
                assert torch.allclose(batch[row, -alone.shape[1] :], alone[0], atol=1e-5)


@pytest.mark.parametrize("turn", [0, 1, 2, 3], ids=["PREFILL", "LAST", "DECODE", "ALL"])
def test_runners_and_the_tracing_context_agree(model: HybridModel, turn):
    """Shared prefills, plans as batch rows and one-by-one ``generate`` give the same tokens, and the same scores.

    The runner generates for both samples at once; which of them ``generate`` repeats alternates from plan to plan and
    from phase to phase, so that every rule is compared on both.
    """
    during = (Phase.PREFILL, Phase.LAST, Phase.DECODE, Phase.ALL)[turn]
    chosen = [rule for rule in RULES if not {"end", "new"} & set(getattr(rule, "span", "").split("+"))]
    rules = [dataclasses.replace(rule, during=during) for rule in chosen]
    short = Sample(
        id="s", prompt="xx NEEDLE y NEEDLE", target="z", spans={"needle": ((3, 9), (12, 18)), "context": ((0, 9),)}
    )
    plans = [Plan(), *map(Plan, rules), Plan(HideTokens("needle", during=during), KeepTopHeads(2, during=during))]
    found = {(r.sample_id, r.plan_hash): r.tokens for r in generate(model, [SAMPLE, short], plans, max_new_tokens=5)}
    assert len(found) == 2 * len(plans)
    for number, plan in enumerate(plans, start=turn):
        sample = (SAMPLE, short)[number % 2]
        with torch.no_grad():
            out = model.intervene(plan).generate(sample, max_new_tokens=5, do_sample=False)
        assert found[sample.id, plan.hash] == tuple(out[0, len(model.encode(sample)) :].tolist()), str(plan)
    scored = [plan for plan in plans if plan.during != Phase.DECODE]
    records = list(loglikelihood(model, [SAMPLE], scored))
    singles = [record for plan in scored for record in loglikelihood(model, [SAMPLE], plan, batch_size=1)]
    for one, other in zip(records, singles, strict=True):
        assert one.loglikelihoods == pytest.approx(other.loglikelihoods, abs=2e-4)


def test_heads_are_scored_by_the_pattern_that_is_left(model: HybridModel):
    """With one key left, every head has entropy 0 and the lowest index is kept."""
    layer = model.attention_layers[0]
    plan = Plan(OnlyTokens("end", during=Phase.LAST, layers=(layer,)), KeepTopHeads(1, during=Phase.LAST))
    one_key = with_spans(SAMPLE, end=((26, 27),))
    with torch.no_grad(), model.intervene(plan).trace(one_key):
        z = model.z(layer)[0, -1].save()
    assert z.abs().sum(-1).ne(0).tolist() == [True, False, False, False]


def test_plans_with_token_rules_stack(model: HybridModel):
    stacked = model.intervene(Plan(HideTokens("needle"))).intervene(Plan(HideTokens("end")))
    together = model.intervene(Plan(HideTokens("needle"), HideTokens("end")))
    with torch.no_grad():
        assert torch.equal(stacked.trace(SAMPLE, trace=False).logits, together.trace(SAMPLE, trace=False).logits)
    clean = logits(model)
    assert torch.equal(clean, logits(model))


def test_a_needle_that_left_the_window_is_reported(build):
    model = build("recurrentgemma")
    far = Sample(id="far", prompt="NEEDLE " + "x" * 30, target="y", spans={"needle": ((0, 6),)})
    plans = [Plan(), Plan(HideTokens("needle", during=Phase.GENERATION)), Plan(HideTokens("needle")), Plan(HideAll())]
    base, generation, everywhere, nothing = generate(model, [far], plans, max_new_tokens=5)
    assert generation.tokens == base.tokens
    assert (base.beyond_window, nothing.beyond_window) == ({}, {})
    assert generation.beyond_window == {"needle": len(generation.tokens)}
    last_seen = 6 + WINDOW - 1  # the needle's last token is at position 6
    prompt = len(model.encode(far))
    assert everywhere.beyond_window == {"needle": prompt - 1 - last_seen + len(everywhere.tokens) - 1}
    layer = model.attention_layers[0]
    with torch.no_grad(), model.intervene(plans[1]).trace(far):
        pattern = model.pattern(layer)[0, :, -1].save()
    assert pattern[:, :7].eq(0).all()
    unlimited = build("jamba")
    assert [record.beyond_window for record in generate(unlimited, [far], plans, max_new_tokens=5)] == [{}] * 4


def test_the_window_shifts_key_indices(build, monkeypatch):
    """While decoding, cached keys are cut to the window; the span is still found, by position."""
    model = build("recurrentgemma")
    plan = Plan(OnlyTokens("needle", occurrence=1, during=Phase.DECODE))
    with torch.no_grad():
        out = model.intervene(plan).generate(
            SAMPLE,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        forced = model.intervene(plan).trace(
            out.sequences,
            trace=False,
            prompt_lengths=[len(model.encode(SAMPLE))],
            spans=[next(iter(spans_of(model)))],
        )
    assert torch.allclose(torch.stack(out.logits, 1), forced.logits[:, -7:-1], atol=2e-5)


def spans_of(model: HybridModel):
    from segregation.prompts.spans import sample_spans

    yield sample_spans(model.tokenizer, SAMPLE)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (HideTokens("nedle"), r"sample 'twice' has the spans \['context', 'end', 'needle'\], not 'nedle'"),
        (
            HideTokens("needle", occurrence=2),
            r"2 occurrence\(s\) of 'needle', so the last is number 1; got occurrence 2",
        ),
        (HideTokens("context", but="question"), "not 'question'"),
    ],
)
def test_a_span_that_a_sample_lacks_is_refused_before_anything_runs(model: HybridModel, rule, message):
    for run in (generate, loglikelihood):
        with pytest.raises(SampleError, match=message):
            run(model, [SAMPLE], Plan(rule))
    with pytest.raises(SampleError, match=message):
        model.intervene(Plan(rule)).trace(SAMPLE, trace=False)


def test_a_span_beyond_the_prompt_is_refused(model: HybridModel):
    with pytest.raises(SampleError, match="'end' of sample 'twice' reaches token 25, but the prompt has 20 tokens"):
        model.intervene(Plan(HideTokens("end"))).trace(SAMPLE, trace=False, prompt_lengths=[20])


def test_text_has_no_spans_but_what_every_prompt_has(model: HybridModel):
    with pytest.raises(SampleError, match="is not a Sample, which has spans; pass a Sample, or use one of"):
        model.intervene(Plan(HideTokens("needle"))).trace("abc", trace=False)
    with torch.no_grad():
        hidden = model.intervene(Plan(HideTokens("prompt"))).trace("abc", trace=False, prompt_lengths=[2]).logits
        base = model.trace("abc", trace=False).logits
    assert torch.allclose(hidden[:, :2], base[:, :2], atol=1e-6)  # nothing is left to see, so the row is untouched
    assert not torch.allclose(hidden[:, 2:], base[:, 2:], atol=1e-3)


def test_attention_that_does_not_say_what_it_sees_is_refused(build):
    model = build("jamba")
    model.hf_model.config._attn_implementation = "flash_attention_2"
    for rule in (HideTokens("prompt"), HideAll(), KeepTopHeads(2)):
        with pytest.raises(PlanError, match="random-jamba runs flash_attention_2"):
            model.intervene(Plan(rule))
    model.intervene(Plan(AblateHeads()))


PAIRS = [
    (OnlyTokens("needle+end"), HideTokens("needle")),
    (HideTokens("needle"), BalanceTokens("context")),
    (HideTokens("needle", occurrence=0), BalanceTokens("needle")),
    (HideTokens("prompt", during=Phase.DECODE), HideTokens("new", during=Phase.DECODE)),
    (OnlyTokens("context"), BalanceTokens("context")),
]


@pytest.mark.parametrize("rules", PAIRS, ids=lambda rules: " + ".join(map(str, rules)))
def test_what_one_rule_hides_stays_hidden_under_the_next(model: HybridModel, rules):
    """In either order, and in every row: a distribution over what both rules leave, or the row of one of them."""
    layer = model.attention_layers[0]
    hidden = sorted(named(model, rules[0])) if isinstance(rules[0], HideTokens) else sorted(named(model, rules[1]))
    for order in (rules, rules[::-1]):
        assert not logits(model, *order).isnan().any()
        with torch.no_grad(), model.intervene(Plan(*order)).trace(SAMPLE, prompt_lengths=[CUT]):
            pattern = model.pattern(layer)[0].save()
        assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-6)
        if isinstance(rules[0], HideTokens) and isinstance(rules[1], BalanceTokens):
            assert pattern[:, CUT - 1][:, hidden].eq(0).all()


def test_rules_that_together_leave_nothing_are_refused_once_spans_are_known(model: HybridModel):
    plan = Plan(HideTokens("context"), OnlyTokens("needle", occurrence=0))  # the first needle lies in the context
    with pytest.raises(PlanError, match="every token that one keeps is hidden by the"):
        generate(model, [SAMPLE], plan)
    with pytest.raises(PlanError, match="names no token of this prompt"):
        generate(model, [SAMPLE], Plan(HideTokens("needle", occurrence=0, but="context")))


@pytest.mark.parametrize("swap", [False, True])
def test_the_sum_over_the_prefill_is_each_rules_own(model: HybridModel, swap):
    layer, alone = model.attention_layers[0], paper(BalanceTokens("needle", during=Phase.PREFILL))

    def rows(*rules) -> Tensor:
        with torch.no_grad(), model.intervene(Plan(*rules)).trace(SAMPLE):
            found = model.pattern(layer)[0, :, 0].save()
        return found

    others = (HideTokens("end", during=Phase.LAST), paper(BalanceTokens("context", during=Phase.LAST)))
    for other in others:
        assert torch.equal(rows(other, alone) if swap else rows(alone, other), rows(alone))


def test_a_sum_over_rows_does_not_reach_from_one_new_token_to_another(model: HybridModel):
    """Scored in one forward pass or token by token, with whatever comes after."""
    plan = Plan(paper(BalanceTokens("needle", during=Phase.DECODE)))
    long = dataclasses.replace(SAMPLE, target="abcdefgh", choices=("abcdefgh", "ab"))
    (record,) = loglikelihood(model, [long], plan)
    with torch.no_grad():
        ids = torch.tensor([[*model.encode(SAMPLE), *model.encode_continuation("abcdefgh")]])
        lengths = [len(model.encode(SAMPLE))]
        spans = [next(iter(spans_of(model)))]
        forced = (
            model.intervene(plan).trace(ids, trace=False, prompt_lengths=lengths, spans=spans).logits[0].log_softmax(-1)
        )
    own = [forced[lengths[0] - 1 + i, ids[0, lengths[0] + i]].item() for i in range(8)]
    assert record.loglikelihoods == pytest.approx((sum(own), sum(own[:2])), abs=2e-4)


def test_a_model_that_carries_a_span_rule_shares_prefills_by_spans(model: HybridModel):
    first, second = SAMPLE, dataclasses.replace(SAMPLE, id="other", spans={**SPANS, "needle": ((10, 17),)})
    for during in (Phase.GENERATION, Phase.PREFILL):
        rule = HideTokens("needle", during=during)
        carried = list(generate(model.intervene(Plan(rule)), [first, second], Plan(), max_new_tokens=4))
        passed = list(generate(model, [first, second], Plan(rule), max_new_tokens=4))
        assert [record.tokens for record in carried] == [record.tokens for record in passed]


def test_plans_that_act_in_other_phases_and_layers_are_scored_together(model: HybridModel):
    one, other = model.attention_layers[:2]
    plans = [
        Plan(HideTokens("needle", during=Phase.DECODE, layers=(one,))),
        Plan(HideTokens("needle", during=Phase.LAST, layers=(other,))),
    ]
    sample = dataclasses.replace(SAMPLE, target="ab", choices=("ab", "c", "d"))
    for size in (2, None):
        small = {r.plan_hash: r.loglikelihoods for r in loglikelihood(model, [sample], plans, batch_size=size)}
        for plan in plans:
            (alone,) = loglikelihood(model, [sample], plan)
            assert small[plan.hash] == pytest.approx(alone.loglikelihoods, abs=2e-4)


def test_what_left_the_window_is_not_given_back_whatever_the_padding(tokenizer: object) -> None:
    """Queries are edited in chunks, whose keys begin where the first one's window does: rows must not see where."""
    model = HybridModel(random_module("recurrentgemma"), tokenizer, {})
    text = "abcdefgh ijkl" * 9
    short, long = (dataclasses.replace(SAMPLE, prompt=text[:n], spans={"needle": ((35, 41),)}) for n in (90, 110))
    plan = Plan(BalanceTokens("needle", causal=False, during=Phase.PREFILL))
    together = [one.loglikelihoods for one in loglikelihood(model, [short, dataclasses.replace(long, id="long")], plan)]
    assert together[0] == pytest.approx(next(iter(loglikelihood(model, [short], plan))).loglikelihoods, abs=1e-4)
