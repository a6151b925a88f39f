import math
from collections.abc import Callable

import pytest
import torch
from nnsight import save
from torch import Tensor

from segregation.interventions import apply
from segregation.interventions.heads import SCORES, SIGN, ablate, entropy, keep_top, l2, negative_entropy, paper_entropy
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, HideTokens, KeepTopHeads, Plan
from segregation.models.attention import AttentionCall
from segregation.models.entropy_attention import NAME, use_entropy_attention
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample

ONE_HOT = [1.0, 0.0, 0.0, 0.0]
HALF = [0.5, 0.5, 0.0, 0.0]
UNIFORM = [0.25, 0.25, 0.25, 0.25]
THREE_HEADS = torch.tensor([[[UNIFORM], [ONE_HOT], [HALF]]])  # batch 1, head 3, dest 1, src 4


def test_three_hand_made_heads():
    assert torch.allclose(entropy(THREE_HEADS)[0, :, 0], torch.tensor([math.log(4), 0.0, math.log(2)]))
    assert torch.allclose(l2(THREE_HEADS)[0, :, 0], torch.tensor([0.5, 1.0, 0.5**0.5]))
    assert torch.allclose(paper_entropy(THREE_HEADS)[0, :, 0], torch.tensor([-2.0, 0.0, -1.0]), atol=1e-6)


def test_a_uniform_row_loses_to_a_one_hot_row():
    for score in (negative_entropy, l2, paper_entropy):
        assert keep_top(score(THREE_HEADS), 1)[0, :, 0].tolist() == [False, True, False]
        assert keep_top(score(THREE_HEADS), 2)[0, :, 0].tolist() == [False, True, True]


def test_every_k():
    scores = torch.randn(2, 5, 7)
    for k in range(6):
        assert keep_top(scores, k).sum(1).eq(k).all()
    per_position = torch.tensor([[0, 1, 2, 3, 4, 5, 5], [5, 4, 3, 2, 1, 0, 0]])
    assert torch.equal(keep_top(scores, per_position).sum(1), per_position)


def test_ties_go_to_the_lowest_head():
    assert keep_top(torch.zeros(1, 6, 1), 2)[0, :, 0].tolist() == [True, True, False, False, False, False]


def test_paper_entropy_ties_in_bf16_where_entropy_does_not():
    base = torch.full((1, 2, 1, 64), 1 / 64)
    base[0, 1, 0, :2] += torch.tensor([1e-3, -1e-3])
    assert paper_entropy(base.bfloat16())[0, 0] == paper_entropy(base.bfloat16())[0, 1]
    assert entropy(base)[0, 0] != entropy(base)[0, 1]


def test_entropy_has_gradients_where_keys_are_not_seen():
    scores = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    found = []
    for hidden in (-torch.inf, -60.0):  # not seen, and next to it
        own = scores.clone().requires_grad_()
        of = entropy(own.masked_fill(~torch.ones(5, 5).tril().bool(), hidden).softmax(-1))
        of[..., 1:].sum().backward()
        found.append((of.detach(), own.grad))
    assert found[0][1].abs().max() > 0.01
    assert all(torch.allclose(*pair, atol=1e-9) for pair in zip(*found, strict=True))
    half = torch.eye(1000, dtype=torch.float16)[None, None]
    assert entropy(half.requires_grad_()).eq(0).all()
    _, change = torch.func.jvp(entropy, (half.detach(),), (torch.ones_like(half),))
    assert change.isfinite().all()


def test_ablate_touches_nothing_else():
    z = torch.randn(2, 3, 4, 5)
    keep = torch.rand(2, 3, 4) < 0.5
    edited = ablate(z, keep)
    assert torch.equal(edited[keep], z[keep])
    assert edited[~keep].eq(0).all()


# -- scores that attention measures as it runs -------------------------------------------------------------------------

TEXT = "abc defgh ij abc klm defgh, and more than one chunk of queries"
SAMPLE = Sample(id="one", prompt=TEXT, target="x", spans={"needle": ((4, 9),)})


@pytest.fixture(params=["recurrentgemma", "jamba", "falcon_h1", "kimi_linear", "qwen3_next"])
def measuring(request: pytest.FixtureRequest, build: Callable[..., HybridModel]) -> HybridModel:
    """A model whose attention measures rows."""
    use_entropy_attention()
    model = build(request.param)
    model.hf_model.set_attn_implementation(NAME)
    return model


def logits(model: HybridModel, text: object = TEXT) -> Tensor:
    with torch.no_grad():
        return model.trace(text, trace=False).logits


def recomputed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scores that are computed again from what attention was given, as they are asked for."""
    seen: list[str] = []

    def spy(call: AttentionCall, score: str, *args: object, **kwargs: object) -> Tensor:
        seen.append(score)
        return head_scores(call, score, *args, **kwargs)

    head_scores = apply.head_scores
    monkeypatch.setattr(apply, "head_scores", spy)
    return seen


def test_a_measure_and_its_sign_give_the_score():
    for measure, value in {"entropy": entropy(THREE_HEADS), "l2": l2(THREE_HEADS)}.items():
        assert torch.equal(SIGN[measure] * value, SCORES[measure](THREE_HEADS))
    assert set(SIGN) < set(SCORES)


@pytest.mark.parametrize("during", [Phase.PREFILL, Phase.LAST, Phase.ALL])
@pytest.mark.parametrize("score", SIGN)
def test_heads_kept_by_what_attention_measures_are_those_of_sdpa(
    measuring: HybridModel, monkeypatch: pytest.MonkeyPatch, score: str, during: Phase
):
    plan = Plan(KeepTopHeads(2, score, during=during))
    again = recomputed(monkeypatch)
    measured, base = logits(measuring.intervene(plan)), logits(measuring)
    assert again == []
    measuring.hf_model.set_attn_implementation("sdpa")
    expected, plain = logits(measuring.intervene(plan)), logits(measuring)
    assert again == [score] * len(measuring.attention_layers)
    noise = max(3e-6 * max(1.0, float(expected.abs().max())), float((base - plain).abs().max()))
    assert (measured - expected).abs().max() <= noise < (measured - base).abs().max()


def test_keeping_every_head_changes_no_bit(measuring: HybridModel):
    plan = Plan(KeepTopHeads(measuring.n_heads, during=Phase.ALL))
    assert torch.equal(logits(measuring.intervene(plan)), logits(measuring))


def test_asking_for_scores_changes_no_bit_elsewhere(measuring: HybridModel):
    """Positions before the first that a plan edits are those of the plain model, though attention measured rows."""
    edited = logits(measuring.intervene(Plan(KeepTopHeads(1, during=Phase.LAST))))
    base = logits(measuring)
    assert torch.equal(edited[:, :-1], base[:, :-1]) and not torch.equal(edited[:, -1], base[:, -1])


def test_plans_that_are_stacked_share_what_is_measured(measuring: HybridModel, monkeypatch: pytest.MonkeyPatch):
    again = recomputed(monkeypatch)
    first, second = Plan(KeepTopHeads(3, during=Phase.ALL)), Plan(KeepTopHeads(2, "l2", during=Phase.LAST))
    stacked = logits(measuring.intervene(first).intervene(second))
    assert again == []
    together = logits(measuring.intervene(Plan(*first.rules, *second.rules)))
    assert torch.equal(stacked, together)


def test_prompts_of_unequal_length_in_two_invokes(measuring: HybridModel):
    edited = measuring.intervene(Plan(KeepTopHeads(2, during=Phase.ALL)))
    with torch.no_grad(), edited.trace() as tracer:
        with tracer.invoke(TEXT):
            long = save(edited.output.logits)
        with tracer.invoke(TEXT[:20]):
            short = save(edited.output.logits)
    alone = logits(edited), logits(edited, TEXT[:20])
    for found, expected in zip((long, short), alone, strict=True):
        own = found[:, -expected.shape[1] :]
        assert (own - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_a_token_fed_alone_is_scored_from_its_inputs(measuring: HybridModel, monkeypatch: pytest.MonkeyPatch):
    again = recomputed(monkeypatch)
    edited = measuring.intervene(Plan(KeepTopHeads(2, during=Phase.ALL)))
    with torch.no_grad():
        edited.generate(TEXT, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert again == ["entropy"] * (2 * len(measuring.attention_layers))  # prefill is measured, two steps are not


@pytest.mark.parametrize(
    "plan",
    [
        Plan(HideTokens("needle"), KeepTopHeads(2, during=Phase.ALL)),
        Plan(KeepTopHeads(2, "paper_entropy", during=Phase.ALL)),
        Plan(KeepTopHeads(3, during=Phase.ALL), KeepTopHeads(2, "paper_entropy", during=Phase.ALL)),
        Plan(HideTokens("needle")),
        Plan(AblateHeads("all", during=Phase.LAST)),
    ],
    ids=str,
)
def test_what_attention_cannot_measure_is_computed_from_its_inputs(measuring: HybridModel, plan: Plan):
    prompts = [SAMPLE, Sample(id="two", prompt=TEXT[:30], target="x", spans={"needle": ((4, 9),)})]
    under = []
    for implementation in (NAME, "sdpa"):
        measuring.hf_model.set_attn_implementation(implementation)
        with torch.no_grad():
            out = measuring.intervene(plan).generate(
                prompts,
                **{"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False},
                output_logits=True,
                return_dict_in_generate=True,
            )
        under.append(torch.stack(out.logits))
    assert (under[0] - under[1]).abs().max() < 5e-6 * max(1.0, float(under[1].abs().max()))
