"""Outputs of recurrent mixers replaced by those of a reference: against plain PyTorch hooks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from segregation.errors import PlanError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import AblateRecurrent, PatchState, ResetState
from segregation.interventions.recurrent_tables import entry_of
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.models.load import load_model
from segregation.prompts.needle import needle_grid
from segregation.prompts.sample import Sample
from segregation.runs.generate import generate
from segregation.runs.references import mixer_outputs
from segregation.scores.retrieval import retrieval_score

SAMPLES = [Sample("a", "abc defgh ij kl", "x"), Sample("b", "hgf edc ba", "x")]
TEXT = "lk jih gfed cba"
CUT = 9


def by_hooks(model: HybridModel, edit_of) -> Tensor:
    """Logits of the plain module with every mixer's output edited by a hook."""

    def hook(layer: int):
        def edit(_module, _args, output):
            return (edit_of(layer, output[0]), *output[1:]) if isinstance(output, tuple) else edit_of(layer, output)

        return model.mixer(layer)._module.register_forward_hook(edit)

    handles = [hook(layer) for layer in model.recurrent_layers]
    try:
        model.reset()
        with torch.no_grad():
            return model.hf_model(torch.tensor([model.encode(TEXT)])).logits
    finally:
        for handle in handles:
            handle.remove()


def all_outputs(model: HybridModel) -> dict[int, Tensor]:
    """What every mixer puts out at every position of the samples, by hooks."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in model.recurrent_layers}

    def hook(layer: int):
        def read(_module, _args, output):
            found[layer].append((output[0] if isinstance(output, tuple) else output)[0].clone())

        return model.mixer(layer)._module.register_forward_hook(read)

    handles = [hook(layer) for layer in model.recurrent_layers]
    for sample in SAMPLES:
        model.reset()
        with torch.no_grad():
            model.hf_model(torch.tensor([model.encode(sample)]))
    for handle in handles:
        handle.remove()
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def edited(model: HybridModel, rule) -> Tensor:
    with torch.no_grad():
        return model.intervene(Plan(rule)).trace(TEXT, prompt_lengths=[CUT], trace=False).logits


@pytest.mark.parametrize("during", [Phase.PREFILL, Phase.GENERATION, Phase.ALL])
def test_mean_equals_hooks(any_scan: HybridModel, during: Phase, tmp_path: Path):
    path = tmp_path / "reference.safetensors"
    mixer_outputs(any_scan, SAMPLES, path)
    means = {layer: whole.mean(0) for layer, whole in all_outputs(any_scan).items()}
    positions = torch.arange(len(any_scan.encode(TEXT)))
    numbers = (positions >= CUT - 1).long() + (positions > CUT - 1).long()
    at = torch.isin(numbers, torch.tensor(during.numbers))[None, :, None]
    got = edited(any_scan, AblateRecurrent("mean", source=str(path), during=during))
    expected = by_hooks(any_scan, lambda layer, out: torch.where(at, means[layer], out))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(got, edited(any_scan, AblateRecurrent("zero", during=during)))


def test_resample_draws_from_the_reference(any_scan: HybridModel, tmp_path: Path):
    path = tmp_path / "reference.safetensors"
    mixer_outputs(any_scan, SAMPLES, path)
    pools = load_file(path)
    for layer, whole in all_outputs(any_scan).items():  # all positions are kept, in the same order in all layers
        pool = pools[f"{layer}/pool"]
        assert len(pool) == len(whole)
        assert (pool[:, None] - whole[None]).abs().amax(-1).amin(-1).max() < 1e-5
        torch.testing.assert_close(pool.sum(0), whole.sum(0), atol=1e-4, rtol=1e-4)
    positions = torch.arange(len(any_scan.encode(TEXT)))[None]
    logits = []
    for seed in (0, 1):
        entry = entry_of(positions, seed, len(pool))[0].tolist()
        expected = by_hooks(
            any_scan, lambda layer, _, at=entry: torch.stack([pools[f"{layer}/pool"][i] for i in at])[None]
        )
        logits.append(edited(any_scan, AblateRecurrent("resample", source=str(path), seed=seed)))
        torch.testing.assert_close(logits[-1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(*logits)


def test_resampled_generation_equals_teacher_forcing(any_scan: HybridModel, tmp_path: Path):
    path = tmp_path / "reference.safetensors"
    mixer_outputs(any_scan, SAMPLES, path, pool=7)
    plan = Plan(AblateRecurrent("resample", source=str(path)))
    for sample, record in zip(SAMPLES, generate(any_scan, SAMPLES, plan, max_new_tokens=4), strict=True):
        prompt = any_scan.encode(sample)
        ids = torch.tensor([[*prompt, *record.tokens[:-1]]])
        with torch.no_grad():
            forced = any_scan.intervene(plan).trace(ids, prompt_lengths=[len(prompt)], trace=False).logits
        assert tuple(forced[0, len(prompt) - 1 :].argmax(-1).tolist()) == record.tokens


def test_entries_are_drawn_evenly():
    drawn = entry_of(torch.arange(20_000)[None], 3, 10)[0]
    counts = drawn.bincount(minlength=10)
    assert drawn.min() >= 0 and len(counts) == 10 and (counts - 2000).abs().max() < 200
    assert (entry_of(torch.arange(20_000)[None], 4, 10)[0] == drawn).float().mean() < 0.15


def test_references_that_cannot_be(any_scan: HybridModel, tmp_path: Path):
    path = str(tmp_path / "reference.safetensors")
    with pytest.raises(PlanError, match="cannot be read"):
        AblateRecurrent("mean", source=path)
    with pytest.raises(SampleError, match="got none"):
        mixer_outputs(any_scan, [], path)
    with pytest.raises(PlanError, match="1 or more outputs"):
        mixer_outputs(any_scan, SAMPLES, path, pool=0)
    save_file({f"{layer}/mean": torch.zeros(3) for layer in any_scan.recurrent_layers}, path)
    with pytest.raises(PlanError, match="d_model = 32 numbers"):
        any_scan.intervene(Plan(AblateRecurrent("mean", source=path)))
    Path(path).write_bytes(b"no tensors")
    with pytest.raises(PlanError, match="no safetensors file"):
        any_scan.intervene(Plan(AblateRecurrent("mean", source=path)))


def test_a_plan_follows_its_file(tmp_path: Path):
    path = str(tmp_path / "one.safetensors")
    save_file({"0/mean": torch.zeros(3)}, path)
    for make in (lambda: AblateRecurrent("mean", source=path), lambda: PatchState(path, "conv")):
        save_file({"0/mean": torch.zeros(3)}, path)
        plan = Plan(make())
        assert Plan(make()).hash == plan.hash and Plan.from_json(plan.to_json()) == plan
        assert plan.rules[0].sha256[:12] in str(plan) and plan.rules[0].sha256 not in str(plan)
        save_file({"0/mean": torch.ones(3)}, path)
        assert Plan(make()).hash != plan.hash
        assert Plan.from_json(plan.to_json()) == plan  # a record of it can still be read


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: AblateRecurrent("mean"), "needs a reference"),
        (lambda: AblateRecurrent("zero", source="x", sha256="0"), "reads no reference"),
        (lambda: AblateRecurrent("skip", seed=1), "seed"),
        (lambda: AblateRecurrent(layers=()), "layers"),
        (lambda: AblateRecurrent(during=Phase(0)), "during"),
        (lambda: AblateRecurrent(span="a b"), "span"),
        (lambda: AblateRecurrent(span="new", during=Phase.PREFILL), "names no token"),
        (lambda: AblateRecurrent(span="needle", but="needle"), "names no token"),
        (lambda: ResetState(every=0), "1 or more"),
        (lambda: ResetState(every=True), "1 or more"),
        (lambda: PatchState("x", sha256="0", during=Phase.ALL), "nothing is remembered"),
        (lambda: PatchState(""), "save_memory"),
        (lambda: Plan(AblateRecurrent("zero"), AblateRecurrent("skip", span="needle")), "one output"),
        (lambda: Plan(AblateRecurrent("zero", span="needle"), AblateRecurrent("skip", span="needle")), "one output"),
        (lambda: Plan(ResetState(2), ResetState(3)), "one rhythm"),
        (lambda: Plan(PatchState("x", sha256="0"), PatchState("x", sha256="1")), "both say"),
    ],
)
def test_rules_that_cannot_be(make, reason: str):
    with pytest.raises(PlanError, match=reason):
        make()


def test_rules_that_can_be():
    zero, skip = AblateRecurrent("zero", layers=(0,)), AblateRecurrent("skip", layers=(1,))
    for plan in (
        Plan(zero, skip),
        Plan(AblateRecurrent("zero", during=Phase.PREFILL), AblateRecurrent("skip", during=Phase.GENERATION)),
        Plan(AblateRecurrent("zero", span="needle"), AblateRecurrent("skip", span="question")),
        Plan(ResetState(2, layers=(0,)), ResetState(3, layers=(1,))),
        Plan(PatchState("x", sha256="0"), PatchState("x", "conv", sha256="1")),
        Plan(PatchState("x", sha256="0", during=Phase.LAST), PatchState("x", sha256="1", during=Phase.DECODE)),
    ):
        assert Plan.from_json(plan.to_json()) == plan


def test_layers_of_the_other_kind_are_refused(any_scan: HybridModel):
    for rule in (AblateRecurrent(layers=any_scan.attention_layers), ResetState(2, layers=(99,))):
        with pytest.raises(PlanError, match="layer must be one of"):
            any_scan.intervene(Plan(rule))


def test_controls_of_one_kind_of_layer(build):
    """A model without recurrent layers has nothing to ablate; one without attention has no keys."""
    attention = build("recurrentgemma", block_types=("attention",))
    recurrent = build("recurrentgemma", block_types=("recurrent",))
    with pytest.raises(PlanError, match="does not have: all of its layers are attention"):
        attention.intervene(Plan(AblateRecurrent()))
    with pytest.raises(PlanError, match="does not have: all of its layers are recurrent"):
        recurrent.intervene(Plan(PatchState(__file__, "keys")))
    plain = list(generate(recurrent, SAMPLES, [Plan(), Plan(AblateRecurrent())], max_new_tokens=3))
    assert plain[0].tokens != plain[1].tokens


def test_spans_that_meet_are_refused(any_scan: HybridModel):
    sample = Sample("a", "abc defgh", "x", spans={"needle": ((1, 4),), "word": ((3, 6),), "end": ((6, 8),)})
    zero, skip = (AblateRecurrent(value, span=span) for value, span in (("zero", "needle"), ("skip", "word")))
    with pytest.raises(PlanError, match="1 tokens of the prompt in common"):
        generate(any_scan, [sample], Plan(zero, skip), max_new_tokens=1)
    list(generate(any_scan, [sample], Plan(zero, AblateRecurrent("skip", span="end")), max_new_tokens=1))
    with pytest.raises(SampleError, match="not 'question'"):
        generate(any_scan, [sample], Plan(AblateRecurrent(span="question")), max_new_tokens=1)


def test_a_bundled_model_needs_the_needle_in_its_state_and_no_distractor():
    """Skipped by the recurrence, the context is not missed; the needle is: it does not come out any more."""
    model = load_model("tiny-recurrentgemma")
    samples = needle_grid(model.tokenizer, context_lengths=(128,), depth_percents=(0, 50, 100), seed=0)
    distractors, needle = AblateRecurrent("skip", span="context", but="needle"), AblateRecurrent("skip", span="needle")
    records = generate(model, samples, [Plan(), Plan(distractors), Plan(needle)], max_new_tokens=40)
    assert [retrieval_score(record).exact for record in records] == [True, True, False] * 3
