"""Rules about recurrent layers against plain PyTorch: hooks, and loops over tokens of the mixers' own maths."""

import contextlib
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from segregation.errors import PlanError
from segregation.interventions.apply import enter
from segregation.interventions.head_rules import AblateHeads
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, ResetState
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans, sample_spans
from segregation.runs.generate import generate
from segregation.runs.launch import left_padded
from tests.conftest import phase_mask
from tests.interventions.plain_mixers import plain_mixer

TEXT = "abc defgh ij abc klm defgh"
PHASES = (Phase.PREFILL, Phase.LAST, Phase.DECODE, Phase.GENERATION, Phase.ALL)
CUT = 9
SPANS = TokenSpans("a", (("needle", ((3, 4, 5),)), ("context", ((2, 3, 4, 5, 6, 7),))))


def logits(model: HybridModel, text=TEXT, **kwargs) -> Tensor:
    with torch.no_grad():
        return model.trace(text, trace=False, **kwargs).logits


def ids_of(model: HybridModel, text: str = TEXT) -> Tensor:
    return torch.tensor([model.encode(text)])


def inside(model: HybridModel, during: Phase, text: str = TEXT) -> Tensor:
    n = ids_of(model, text).shape[1]
    return phase_mask(during, torch.arange(n)[None], torch.tensor([CUT]))


@contextlib.contextmanager
def hooked(model: HybridModel, hook_of: Callable[[int], Callable[..., object]], layers=None) -> Iterator[None]:
    """The plain module with forward hooks on the mixers."""
    handles = [
        model.mixer(layer)._module.register_forward_hook(hook_of(layer), with_kwargs=True)
        for layer in layers or model.recurrent_layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_logits(model: HybridModel, hook_of, layers=None, text: str = TEXT) -> Tensor:
    with torch.no_grad(), hooked(model, hook_of, layers):
        model.reset()
        return model.hf_model(ids_of(model, text)).logits


def emits(edit: Callable[[Tensor], Tensor]):
    """A hook that changes what a mixer emits."""

    def hook(_module: nn.Module, _args, _kwargs, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook


@pytest.mark.parametrize("during", PHASES)
def test_zero_equals_hooks(any_scan: HybridModel, during: Phase):
    at = inside(any_scan, during)[..., None]
    for layers in ("all", any_scan.recurrent_layers[:1]):
        plan = Plan(AblateRecurrent("zero", layers=layers, during=during))
        expected = plain_logits(
            any_scan, lambda _: emits(lambda out: out.masked_fill(at, 0)), None if layers == "all" else layers
        )
        assert torch.equal(logits(any_scan.intervene(plan), prompt_lengths=[CUT]), expected)
    assert not torch.equal(expected, logits(any_scan))


def test_zero_leaves_the_first_states_written(any_scan: HybridModel):
    """The first layer reads the embeddings, so its state is the same; zero on spans leaves other tokens' outputs."""
    first = any_scan.recurrent_layers[0]
    states = []
    for model in (any_scan, any_scan.intervene(Plan(AblateRecurrent()))):
        with torch.no_grad(), model.trace(TEXT):
            states.append(model.state(first).recurrent.save())
    assert torch.equal(*states)


def skip_mask(model: HybridModel, during: Phase, but: bool) -> Tensor:
    at = inside(model, during)
    if but:
        named = torch.zeros_like(at)
        named[:, [2, 6, 7]] = True
        at = at & named
    return at


@pytest.mark.parametrize("but", [False, True])
@pytest.mark.parametrize("during", [Phase.PREFILL, Phase.GENERATION, Phase.ALL])
def test_skip_equals_a_loop_over_tokens(any_scan: HybridModel, during: Phase, but: bool):
    rule = AblateRecurrent(
        "skip", span="context" if but else "everything", but="needle" if but else None, during=during
    )
    at = skip_mask(any_scan, during, but)
    got = logits(any_scan.intervene(Plan(rule)), prompt_lengths=[CUT], spans=[SPANS])
    expected = plain_logits(any_scan, lambda _: plain_mixer(any_scan, skip=at))
    if not (but and during == Phase.GENERATION):
        assert (logits(any_scan) - expected).abs().max() > 1e-2
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_the_loop_over_tokens_is_the_mixer(any_scan: HybridModel):
    expected = plain_logits(any_scan, lambda _: plain_mixer(any_scan))
    torch.testing.assert_close(logits(any_scan), expected, atol=2e-5, rtol=1e-4)


def test_skipping_all_there_is_writes_nothing(any_scan: HybridModel):
    layer = any_scan.recurrent_layers[0]
    with torch.no_grad(), any_scan.intervene(Plan(AblateRecurrent("skip"))).trace(TEXT):
        state = any_scan.state(layer)
        recurrent, conv = state.recurrent.save(), state.conv.save()
    assert recurrent.abs().max() == 0 and conv.abs().max() == 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("during", [Phase.PREFILL, Phase.DECODE, Phase.ALL])
def test_reset_equals_a_loop_over_tokens(any_scan: HybridModel, every: int, during: Phase):
    positions = torch.arange(ids_of(any_scan).shape[1])[None]
    at = inside(any_scan, during) & (positions % every == 0) & (positions > 0)
    got = logits(any_scan.intervene(Plan(ResetState(every=every, during=during))), prompt_lengths=[CUT])
    expected = plain_logits(any_scan, lambda _: plain_mixer(any_scan, reset=at))
    assert (logits(any_scan) - expected).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_no_reset_within_the_run_is_the_identity(any_scan: HybridModel):
    n = ids_of(any_scan).shape[1]
    base = logits(any_scan)
    assert torch.equal(logits(any_scan.intervene(Plan(ResetState(every=n)))), base)
    assert not torch.equal(logits(any_scan.intervene(Plan(ResetState(every=n - 1)))), base)


def test_a_rule_that_acts_at_no_token_is_the_identity(any_scan: HybridModel):
    rule = AblateRecurrent("skip", span="context", but="needle", during=Phase.DECODE)
    assert torch.equal(logits(any_scan.intervene(Plan(rule)), prompt_lengths=[CUT], spans=[SPANS]), logits(any_scan))


RULES = (
    AblateRecurrent("zero", during=Phase.GENERATION),
    AblateRecurrent("skip", during=Phase.PREFILL),
    AblateRecurrent("skip", span="context", but="needle"),
    AblateRecurrent("zero", span="needle+new"),
    AblateRecurrent("skip", span="new"),
    ResetState(every=3),
    ResetState(every=2, during=Phase.DECODE),
)


def samples_of(*lengths: int) -> list[Sample]:
    """Samples with a context and a needle in it, of these numbers of characters."""
    return [
        Sample(
            id=str(n),
            prompt=("abcdefgh ijkl" * n)[:n],
            target="xyz",
            spans={"context": ((1, n - 2),), "needle": ((2, 4),)},
        )
        for n in lengths
    ]


def test_generation_equals_teacher_forcing_and_batches_equal_singles(any_scan: HybridModel):
    """What is generated in a padded batch, step by step after a prefill, is what one forward a sample says."""
    heads = AblateHeads(((any_scan.attention_layers[0], 1),), during=Phase.GENERATION)
    plans, samples = [Plan(rule, heads) for rule in RULES], samples_of(12, 7, 20)
    records = generate(any_scan, samples, plans, max_new_tokens=4)
    for (sample, plan), record in zip(product(samples, plans), records, strict=True):
        prompt = any_scan.encode(sample)
        ids = torch.tensor([[*prompt, *record.tokens[:-1]]])
        spans = sample_spans(any_scan.tokenizer, sample)
        forced = logits(any_scan.intervene(plan), ids, prompt_lengths=[len(prompt)], spans=[spans])
        assert tuple(forced[0, len(prompt) - 1 :].argmax(-1).tolist()) == record.tokens


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rows_of_a_batch_have_their_own_plans(any_scan: HybridModel, rule):
    """A padded batch with a plan a row equals the rows alone; rows without the rule stay as they are."""
    ids = [tuple(any_scan.encode(sample)) for sample in samples_of(12, 12, 20)]
    rows, mask = left_padded(ids, None)
    plans = [Plan(rule), Plan(), Plan(rule)]
    lengths = [9, 9, 11]
    spans = [TokenSpans("a", (("needle", ((3, 4),)), ("context", ((2, 3, 4, 5),)))) for _ in ids]
    with torch.no_grad():
        got = (
            enter(any_scan, *plans)
            .trace(rows, attention_mask=mask, prompt_lengths=lengths, spans=spans, trace=False)
            .logits
        )
    for row, (own, plan) in enumerate(zip(ids, plans, strict=True)):
        alone = logits(any_scan.intervene(plan), torch.tensor([own]), prompt_lengths=[lengths[row]], spans=[spans[row]])
        torch.testing.assert_close(got[row : row + 1, -len(own) :], alone, atol=2e-5, rtol=1e-4)


def test_plans_stack_in_any_order(any_scan: HybridModel):
    """Rules in one plan, and in plans one upon the other, act the same; the loop over tokens has both."""
    skip, reset = AblateRecurrent("skip", span="context", but="needle"), ResetState(every=4)
    heads = AblateHeads(((any_scan.attention_layers[0], 1),), during=Phase.GENERATION)
    kwargs = {"prompt_lengths": [CUT], "spans": [SPANS]}
    together = logits(any_scan.intervene(Plan(skip, heads, reset)), **kwargs)
    for one, other in ((skip, reset), (reset, skip)):
        stacked = any_scan.intervene(Plan(one)).intervene(Plan(other)).intervene(Plan(heads))
        assert torch.equal(logits(stacked, **kwargs), together)
    positions = torch.arange(ids_of(any_scan).shape[1])[None]
    loop = plain_mixer(
        any_scan, skip=skip_mask(any_scan, Phase.ALL, but=True), reset=(positions % 4 == 0) & (positions > 0)
    )
    with torch.no_grad(), hooked(any_scan, lambda _: loop):
        expected = any_scan.intervene(Plan(heads)).trace(TEXT, prompt_lengths=[CUT], trace=False).logits
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=1e-4)


def test_nothing_leaks_into_the_next_run(any_scan: HybridModel):
    base = logits(any_scan)
    for rule in (AblateRecurrent("skip"), ResetState(every=2)):
        edited = any_scan.intervene(Plan(rule))
        once = logits(edited)
        assert torch.equal(logits(any_scan), base)
        assert torch.equal(logits(edited), once)


def test_a_rule_about_tokens_that_are_read_in_another_phase_is_refused(any_scan: HybridModel):
    sample = Sample(id="a", prompt="abcdefgh", target="x", spans={"needle": ((2, 5),)})
    for during in (Phase.DECODE, Phase.LAST):
        plan = Plan(AblateRecurrent("skip", span="needle", during=during))
        with pytest.raises(PlanError, match="reads the tokens of 'needle' in PREFILL alone"):
            list(generate(any_scan, [sample], plan, max_new_tokens=2))
