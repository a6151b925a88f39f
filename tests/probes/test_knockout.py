"""Knocking out contributions against plain PyTorch: hooks and loops over tokens that never write the source tokens."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from nnsight import save
from torch import Tensor

from segregation.errors import PlanError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import ResetState
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.probes.contributions import contribution_vectors
from segregation.probes.knockout import KnockOut
from segregation.prompts.sample import Sample
from tests.conftest import RECURRENT_FAMILIES, random_module
from tests.models.test_scan_inputs import assert_near, read

TEXT = "abc defgh ij abc klm defgh"
SAMPLE = Sample("a", TEXT, "x", spans={"needle": ((3, 9),), "question": ((16, 20),), "b": ((13, 16),)})
NEEDLE, QUESTION = [4, 5, 6, 7, 8, 9], [17, 18, 19, 20]  # after <bos>, a byte a token


@pytest.fixture(scope="module", params=RECURRENT_FAMILIES)
def slow(request: pytest.FixtureRequest, tokenizer) -> HybridModel:
    """One of each scan, whose states forget slowly, so that what is knocked out is not lost in rounding."""
    module = random_module(request.param)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("A_log"):
                parameter.sub_(4)
    return HybridModel(module, tokenizer)


def logits(model: HybridModel, sample=SAMPLE, **kwargs) -> Tensor:
    with torch.no_grad():
        return model.trace(sample, trace=False, **kwargs).logits


@contextlib.contextmanager
def without(model: HybridModel, layers, sources: list[int], dests: list[int]) -> Iterator[None]:
    """The plain module, whose scans subtract at the destinations what a loop over tokens of the sources alone gives."""
    scan = model.family.scan
    originals = []

    def subtracted(module, name, original):
        def rg_lru(**given):
            found, state = original(**given)
            a, u = given["recurrent_gate"] * ~given["reset"], given["hidden_states"]
            h = torch.zeros_like(u[:, 0])
            found = found.clone()
            for t in range(u.shape[1]):
                h = a[:, t] * h + (u[:, t] if t in sources else 0)
                if t in dests:
                    found[:, t] -= h
            return found, state

        return rg_lru

    if scan == "rg_lru":
        for layer in layers:
            unit = model.mixer(layer)._module.rg_lru
            originals.append((unit, "_rnn_scan", unit._rnn_scan))
            unit.__dict__["_rnn_scan"] = subtracted(unit, "_rnn_scan", unit._rnn_scan)
    else:
        for layer in layers:
            mixer = model.mixer(layer)._module
            originals.append((mixer, "forward", mixer.forward))
            mixer.__dict__["forward"] = _mamba_without(mixer, scan, sources, dests)
    try:
        yield
    finally:
        for owner, name, original in originals:
            owner.__dict__[name] = original


def _mamba_without(mixer, scan: str, sources: list[int], dests: list[int]):
    """A mixer's own maths token by token, with a second state that only the sources write."""
    from tests.interventions.plain_mixers import _conv

    def forward(hidden_states, **_):
        x = hidden_states[0]
        none = [False] * len(x)
        out = []
        if scan == "mamba":
            inputs, gate = mixer.in_proj(x).chunk(2, dim=-1)
            a = -mixer.A_log.exp()
            h = theirs = torch.zeros_like(a)
        else:
            inner, n = mixer.intermediate_size, mixer.n_groups * mixer.ssm_state_size
            gate, inputs, dts = mixer.in_proj(x).split([inner, mixer.conv_dim, mixer.num_heads], dim=-1)
            a = -mixer.A_log.exp()
            h = theirs = torch.zeros(mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
        for t in range(len(x)):
            u = torch.nn.functional.silu(_conv(inputs, mixer.conv1d.weight, mixer.conv1d.bias, t, none))
            if scan == "mamba":
                sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
                dt, b, c = mixer.x_proj(u).split(sizes)
                dt = torch.nn.functional.softplus(mixer.dt_proj(mixer.dt_layernorm(dt)))[:, None]
                decay, write = torch.exp(a * dt), dt * mixer.b_layernorm(b)[None] * u[:, None]
                c, skip = mixer.c_layernorm(c), mixer.D * u
            else:
                u, b, c = u.split([inner, n, n])
                u = u.view(mixer.num_heads, mixer.head_dim)
                repeats = mixer.num_heads // mixer.n_groups
                b, c = (part.view(mixer.n_groups, -1).repeat_interleave(repeats, 0) for part in (b, c))
                dt = torch.nn.functional.softplus(dts[t] + mixer.dt_bias)
                decay, write = torch.exp(a * dt)[:, None, None], (dt[:, None] * u)[..., None] * b[:, None]
                c, skip = c[:, None], mixer.D[:, None] * u
            h = decay * h + write
            theirs = decay * theirs + (write if t in sources else 0)
            y = ((h - (theirs if t in dests else 0)) * c).sum(-1) + skip
            if scan == "mamba":
                out.append(mixer.out_proj(y * torch.nn.functional.silu(gate[t])))
            else:
                out.append(mixer.out_proj(mixer.norm(y.flatten()[None], gate[t][None])[0]))
        return torch.stack(out)[None]

    return forward


@pytest.mark.parametrize("during", [Phase.PREFILL, Phase.LAST, Phase.ALL])
def test_equals_a_loop_in_which_the_sources_never_wrote(slow: HybridModel, during: Phase):
    last = len(slow.encode(SAMPLE)) - 1
    dests = {Phase.PREFILL: QUESTION, Phase.LAST: [last], Phase.ALL: list(range(last + 1))}[during]
    knocked = KnockOut("needle", "question" if during is Phase.PREFILL else "everything", during)
    with without(slow, slow.recurrent_layers, NEEDLE, dests), torch.no_grad():
        slow.reset()
        expected = slow.hf_model(torch.tensor([slow.encode(SAMPLE)])).logits
    slow.reset()
    got = logits(slow.intervene(knocked))
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(got, logits(slow), atol=1e-4)
    assert torch.equal(logits(slow), logits(slow.intervene(Plan())))  # and the model stays clean


def test_stepwise_decoding_is_one_forward_over_the_same_tokens(slow: HybridModel):
    """Every phase, with new tokens among the sources: what is left of them is carried from step to step."""
    for knockout in (KnockOut("needle"), KnockOut("needle+new", during=Phase.ALL)):
        knocked = slow.intervene(knockout)
        with (
            torch.no_grad(),
            knocked.generate(
                SAMPLE, max_new_tokens=5, min_new_tokens=5, output_logits=True, return_dict_in_generate=True
            ) as tracer,
        ):
            result = tracer.result.save()
        prompt = len(slow.encode(SAMPLE))
        with torch.no_grad():
            whole = knocked.trace(
                result.sequences[:, :-1], prompt_lengths=[prompt], spans=[spans_of(slow)], trace=False
            ).logits[0, prompt - 1 :]
        torch.testing.assert_close(torch.cat(list(result.logits)), whole, atol=3e-5, rtol=1e-4)
        clean = logits(slow)[0, -1]
        assert not torch.allclose(whole[0], clean, atol=1e-4)


def spans_of(model: HybridModel):
    from segregation.prompts.spans import sample_spans

    return sample_spans(model.tokenizer, SAMPLE)


def test_all_sources_leave_what_passes_the_state_by(slow: HybridModel):
    """At a destination whose sources are all knocked out, the scan emits D x_t alone: nothing in an RG-LRU."""
    knocked = slow.intervene(KnockOut("everything", "question", Phase.ALL))
    clean = read(slow, SAMPLE)
    for layer, (recurrence, output) in read(knocked, SAMPLE).items():
        skip = torch.zeros_like(output) if recurrence.skip is None else recurrence.skip
        skip = skip if recurrence.gate is None else skip * recurrence.gate
        scale = float(clean[layer][1].abs().max())
        assert (output - skip)[:, QUESTION].abs().max() < 1e-5 * scale
        kept = list(range(16))  # before the first destination
        assert torch.equal(output[:, kept], clean[layer][1][:, kept])


def test_what_is_subtracted_are_the_contributions(slow: HybridModel):
    first = slow.recurrent_layers[0]
    (recurrence, before), (_, after) = (
        read(model, SAMPLE)[first] for model in (slow, slow.intervene(KnockOut(dest="question", during=Phase.ALL)))
    )
    theirs = contribution_vectors(recurrence, QUESTION, NEEDLE).sum(2).unflatten(-1, before.shape[2:])
    theirs = theirs if recurrence.gate is None else theirs * recurrence.gate[:, QUESTION]
    assert_near(before[:, QUESTION] - after[:, QUESTION], theirs)


def test_nothing_knocked_out_is_identity_bit_for_bit(slow: HybridModel):
    clean = logits(slow)
    for knockout in (
        KnockOut("new"),  # no token of a prompt
        KnockOut("question", "needle", Phase.ALL),  # contributes only to later tokens
        KnockOut("needle", layers=slow.recurrent_layers[:1], during=Phase.DECODE),
    ):
        assert torch.equal(logits(slow.intervene(knockout)), clean)


def test_rows_have_sources_of_their_own_and_plans_act_first(slow: HybridModel):
    other = Sample("b", TEXT[:20], "x", spans={"needle": ((10, 14),)})
    reset = Plan(ResetState(every=6))
    both = slow.intervene(reset).intervene(KnockOut(during=Phase.ALL))
    batch = logits(both, [SAMPLE, other])
    for row, sample in enumerate((SAMPLE, other)):
        alone = logits(both, sample)[0]
        torch.testing.assert_close(batch[row, -len(alone) :], alone, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(alone, logits(slow.intervene(reset), sample)[0], atol=1e-4)


def test_the_second_state_forgets_what_a_reset_drops(slow: HybridModel):
    """With the state set to zero after the needle, there is nothing left of it to knock out."""
    reset = slow.intervene(Plan(ResetState(every=10)))  # before 10; the needle ends at 9
    knocked = reset.intervene(KnockOut(dest="question", during=Phase.ALL))
    torch.testing.assert_close(logits(knocked), logits(reset), atol=1e-6, rtol=1e-6)


def test_the_state_stays_as_it_is(slow: HybridModel):
    """Only what is emitted is edited: the first layer's state is untouched."""
    first = slow.recurrent_layers[0]
    knocked = slow.intervene(KnockOut(during=Phase.ALL))
    found = []
    for model in (slow, knocked):
        with torch.no_grad(), model.trace(SAMPLE):
            found.append(save(model.state(first).recurrent))
    assert torch.equal(*found)


def test_what_cannot_be_exact_is_refused(slow: HybridModel, tokenizer):
    knocked = slow.intervene(KnockOut())
    with pytest.raises(SampleError, match="needle"):
        logits(knocked, TEXT)
    cache = slow.new_cache()
    with torch.no_grad():
        slow.hf_model(torch.tensor([[2, 5, 6]]), past_key_values=cache, use_cache=True)
    with pytest.raises(PlanError, match=r"from positions \[3\] with a filled cache"):
        logits(
            knocked, torch.tensor([[7]]), past_key_values=cache, position_ids=torch.tensor([[3]]),
            spans=[spans_of(slow)], prompt_lengths=[30], use_cache=True,
        )  # fmt: skip
    with pytest.raises(PlanError, match="one continuation of each prompt"), torch.no_grad():
        knocked.generate(SAMPLE, max_new_tokens=2, do_sample=True, num_return_sequences=2, trace=False)
    with pytest.raises(PlanError, match="recurrent layers"):
        slow.intervene(KnockOut(layers=slow.attention_layers[:1]))
    attention = HybridModel(random_module("recurrentgemma", block_types=["attention"]), tokenizer)
    with pytest.raises(PlanError, match="recurrent layers"):
        attention.intervene(KnockOut())
    for wrong in ({"span": "nee dle"}, {"layers": ()}, {"dest": "a b"}):
        with pytest.raises(PlanError):
            KnockOut(**wrong)
