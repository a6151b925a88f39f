import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segregation.errors import PlanError
from segregation.interventions.heads import keep_top, negative_entropy
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, AblateMixer, KeepHeads, KeepTopHeads, Plan
from segregation.models.hybrid import HybridModel
from tests.conftest import phase_mask

TEXT = "abc defgh ij abc klm defgh"
PHASES = (Phase.PREFILL, Phase.LAST, Phase.DECODE, Phase.GENERATION, Phase.ALL)
CUT = 9  # tokens of the prompt where a forward is teacher-forced


def logits(model: HybridModel, text=TEXT, **kwargs) -> Tensor:
    with torch.no_grad():
        return model.trace(text, trace=False, **kwargs).logits


def with_pre_hooks(model: HybridModel, keep_of: Callable[[int], Tensor]) -> Tensor:
    """Logits of the plain module with z edited by PyTorch forward pre-hooks, as an independent route."""

    def hook(layer: int):
        def edit(_module, args):
            z = args[0].unflatten(-1, (model.n_heads, model.d_head))
            return (z * keep_of(layer)[..., None]).flatten(-2)

        return model.out_proj(layer)._module.register_forward_pre_hook(edit)

    handles = [hook(layer) for layer in model.attention_layers]
    try:
        ids = torch.tensor([model.encode(TEXT)])
        model.reset()
        with torch.no_grad():
            return model._module(ids).logits
    finally:
        for handle in handles:
            handle.remove()


def named(model: HybridModel, heads, inside: Tensor) -> Callable[[int], Tensor]:
    """keep[1, pos, head] per layer: the named heads go where ``inside`` (positions) is true."""

    def keep(layer: int) -> Tensor:
        gone = torch.zeros(model.n_heads, dtype=torch.bool)
        gone[[head for at, head in heads if at == layer]] = True
        return ~(inside[..., None] & gone)

    return keep


def positions_in(model: HybridModel, during: Phase) -> Tensor:
    n = len(model.encode(TEXT))
    return phase_mask(during, torch.arange(n)[None], torch.tensor([CUT]))


def test_empty_plan_is_untouched_transformers(model: HybridModel):
    ids = torch.tensor([model.encode(TEXT)])
    model.reset()
    with torch.no_grad():
        plain = model._module(ids).logits
    assert torch.equal(logits(model.intervene(Plan())), plain)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("score", ["entropy", "l2", "paper_entropy"])
@pytest.mark.parametrize("during", PHASES)
def test_every_head_kept_is_identity(model: HybridModel, score, during: Phase):
    plan = Plan(KeepTopHeads(k=model.n_heads, score=score, during=during))
    assert torch.equal(logits(model.intervene(plan), prompt_lengths=[CUT]), logits(model))


def test_no_head_kept_is_every_head_ablated(model: HybridModel):
    none = logits(model.intervene(Plan(KeepTopHeads(k=0))))
    assert torch.equal(none, logits(model.intervene(Plan(AblateHeads()))))
    assert torch.equal(none, logits(model.intervene(Plan(KeepHeads(())))))
    assert torch.equal(none, with_pre_hooks(model, lambda layer: torch.zeros(1, 1, model.n_heads)))
    assert not torch.equal(none, logits(model))


@pytest.mark.parametrize("during", PHASES)
def test_ablate_and_keep_equal_pre_hooks(model: HybridModel, during: Phase):
    first, second = model.attention_layers[:2]
    heads = ((first, 0), (first, 3), (second, 2))
    inside = positions_in(model, during)
    got = logits(model.intervene(Plan(AblateHeads(heads, during=during))), prompt_lengths=[CUT])
    assert torch.equal(got, with_pre_hooks(model, named(model, heads, inside)))
    others = tuple((layer, h) for layer in model.attention_layers for h in range(4) if (layer, h) not in heads)
    kept = logits(model.intervene(Plan(KeepHeads(others, during=during))), prompt_lengths=[CUT])
    assert torch.equal(kept, got)


@pytest.mark.parametrize("during", [Phase.GENERATION, Phase.ALL])
def test_top_heads_equal_pre_hooks_with_eager_weights(model: HybridModel, during: Phase):
    """Heads chosen from the weights that eager attention itself returns, applied by pre-hooks."""
    inside = positions_in(model, during)
    got = logits(model.intervene(Plan(KeepTopHeads(2, during=during))), prompt_lengths=[CUT])
    chosen: dict[int, Tensor] = {}
    model.hf_model.set_attn_implementation("eager")
    try:
        for layer in model.attention_layers:  # the second layer's pattern under the first layer's ablation
            plan = Plan(KeepTopHeads(2, during=during)) if chosen else Plan()
            with torch.no_grad(), model.intervene(plan).trace(TEXT, prompt_lengths=[CUT]):
                weights = model.attention(layer).source.attention_interface_1.output[1].save()
            best = keep_top(negative_entropy(weights), 2).transpose(1, 2)
            chosen[layer] = best | ~inside[..., None]
    finally:
        model.hf_model.set_attn_implementation("sdpa")
    assert torch.equal(got, with_pre_hooks(model, chosen.__getitem__))


@pytest.mark.parametrize("during", PHASES)
def test_a_plan_touches_exactly_its_positions(model: HybridModel, during: Phase):
    edited = model.intervene(Plan(AblateHeads(during=during)))
    new = 4
    with torch.no_grad(), edited.generate(TEXT, max_new_tokens=new, min_new_tokens=new, do_sample=False) as tracer:
        zs = [].save()
        for _ in tracer.iter[:new]:
            zs.append(model.z(model.attention_layers[0]).abs().sum((-1, -2)))
    touched = torch.cat(list(zs), dim=1)[0] == 0
    n = len(model.encode(TEXT))
    expected = phase_mask(during, torch.arange(n + new - 1)[None], torch.tensor([n]))[0]
    assert torch.equal(touched, expected)
    assert touched.sum() == {1: n - 1, 2: 1, 4: new - 1, 6: new, 7: n + new - 1}[during.value]


def test_a_one_token_prompt_is_last_not_decode(model: HybridModel):
    prompt = torch.tensor([[5]])
    runs = {}
    for during in PHASES:
        edited = model.intervene(Plan(AblateHeads(during=during)))
        with torch.no_grad():
            runs[during] = edited.generate(
                prompt, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            ).logits
    base = logits(model, prompt)[:, -1]
    assert torch.equal(runs[Phase.PREFILL][0], base)
    assert torch.equal(runs[Phase.DECODE][0], base)
    assert not torch.equal(runs[Phase.LAST][0], base)


@pytest.mark.parametrize("during", [Phase.DECODE, Phase.GENERATION, Phase.PREFILL])
def test_generate_equals_one_masked_forward(model: HybridModel, during: Phase):
    plan = Plan(KeepTopHeads(1, during=during))
    with torch.no_grad():
        out = model.intervene(plan).generate(
            TEXT, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    n = len(model.encode(TEXT))
    forced = logits(model.intervene(plan), out.sequences, prompt_lengths=[n])
    assert torch.allclose(torch.stack(out.logits, 1), forced[:, n - 1 : -1], atol=2e-5)


def test_rows_of_a_padded_batch_have_their_own_positions(model: HybridModel):
    texts = ["abc", TEXT, "defgh ijkl m"]
    plan = Plan(KeepTopHeads(1, during=Phase.PREFILL), AblateHeads(((model.attention_layers[1], 0),)))
    edited = model.intervene(plan)
    batch = logits(edited, texts)
    for row, text in enumerate(texts):
        alone = logits(edited, text)
        assert torch.allclose(batch[row, -alone.shape[1] :], alone[0], atol=5e-6)


def test_mixer_ablation_is_more_than_zero_heads_where_the_projection_has_a_bias(model: HybridModel):
    mixer = logits(model.intervene(Plan(AblateMixer())))
    heads = logits(model.intervene(Plan(AblateHeads())))
    biased = model.out_proj(model.attention_layers[0])._module.bias is not None
    assert biased == (model.family.name == "recurrentgemma")
    assert torch.equal(mixer, heads) != biased
    one = model.attention_layers[0]
    with torch.no_grad(), model.intervene(Plan(AblateMixer(layers=(one,), during=Phase.LAST))).trace(TEXT):
        output = model.attention(one).output[0].save()
    assert output[0].abs().sum(-1).eq(0).nonzero().flatten().tolist() == [output.shape[1] - 1]


def test_a_head_whose_projection_block_is_zero_does_nothing(build):
    model = build("jamba")
    layer = model.attention_layers[0]
    with torch.no_grad():
        model.out_proj(layer)._module.weight[:, : model.d_head] = 0
    assert torch.equal(logits(model.intervene(Plan(AblateHeads(((layer, 0),))))), logits(model))


def test_plans_stack_and_the_model_stays_clean(model: HybridModel):
    clean = logits(model)
    first, second = Plan(AblateHeads(((model.attention_layers[0], 1),))), Plan(KeepTopHeads(2, during=Phase.LAST))
    stacked = logits(model.intervene(first).intervene(second))
    assert torch.equal(stacked, logits(model.intervene(Plan(*first.rules, *second.rules))))
    assert not torch.equal(stacked, logits(model.intervene(first)))
    assert torch.equal(logits(model), clean)


def test_several_continuations_of_a_prompt_have_its_phases(model: HybridModel):
    """Greedy ones must all be those of the prompt alone, in a batch of prompts of different lengths."""
    texts = [TEXT, "abc", "defgh ijkl m"]
    edited = model.intervene(Plan(AblateHeads(during=Phase.GENERATION), KeepTopHeads(1, during=Phase.PREFILL)))
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": True, "top_k": 1}
    with torch.no_grad():
        several = edited.generate(texts, num_return_sequences=2, **kwargs)[:, -4:]
        alone = torch.cat([edited.generate(text, **kwargs)[:, -4:] for text in texts])
    assert torch.equal(several, alone.repeat_interleave(2, 0))


def test_the_users_own_reads_and_edits_come_after_the_plan(model: HybridModel):
    layer = model.attention_layers[0]
    edited = model.intervene(Plan(AblateHeads(((layer, 0),))))
    with torch.no_grad(), edited.trace(TEXT):
        pattern = model.pattern(layer).save()
        z = model.z(layer)
        before = z.clone().save()
        z[:, :, 1] = 0
        out = model.output.logits.save()
    assert before[:, :, 0].eq(0).all()
    assert before[:, :, 1].ne(0).any()
    assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-6)
    assert torch.equal(out, logits(model.intervene(Plan(AblateHeads(((layer, 0), (layer, 1)))))))


def test_no_warning_ends_a_run(model: HybridModel):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits(model.intervene(Plan(AblateHeads())))
        with torch.no_grad():
            model.intervene(Plan(AblateHeads())).generate(TEXT, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (KeepTopHeads(5), r"k must be in 0\.\.4 \(n_heads of random-\w+\), got 5\. Use Plan\(\) to keep every head"),
        (AblateHeads(((0, 1),)), r"layer must be an attention layer .*got 0, which is a recurrent layer"),
        (KeepHeads(((99, 1),)), r"got 99, which is absent \(n_layers is \d\)"),
        (AblateMixer(layers=(0,)), "which is a recurrent layer"),
    ],
)
def test_rules_this_model_cannot_follow(model: HybridModel, rule, message: str):
    with pytest.raises(PlanError, match=message):
        model.intervene(Plan(rule))


def test_unknown_head_is_named(model: HybridModel):
    with pytest.raises(PlanError, match=r"head must be in 0\.\.3 .* got head 4 of layer"):
        model.intervene(Plan(AblateHeads(((model.attention_layers[0], 4),))))
