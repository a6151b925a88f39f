import pytest
import torch
from torch import Tensor

from segregation.errors import ModelError
from segregation.interventions.apply import head_scores
from segregation.interventions.heads import entropy
from segregation.models.hybrid import HybridModel
from segregation.models.padding import keep_padding_out
from segregation.prompts.sample import Sample
from tests.conftest import WINDOW, random_module

TEXT = "abc defgh ij abc klm defgh"  # longer than the window


def generated(model: HybridModel, prompt, n: int = 6) -> Tensor:
    with torch.no_grad():
        return model.generate(prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False)


def test_one_vocabulary(model: HybridModel):
    assert (model.n_heads, model.d_head, model.d_model, model.d_vocab) == (4, 8, 32, 259)
    assert len(model.layer_types) == model.n_layers
    assert [model.layer_types[layer] for layer in model.attention_layers] == ["attention"] * len(model.attention_layers)
    assert (model.window, model.max_positions) == ((WINDOW, None) if model.family.window else (None, 256))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_pattern_times_v_is_z(model: HybridModel, implementation: str):
    model.hf_model.set_attn_implementation(implementation)
    try:
        for layer in model.attention_layers:
            with torch.no_grad(), model.trace(["abc", TEXT]):
                call = model.attention_call(layer)
                pattern = model.pattern(layer).save()
                expected = call.z().save()
                if implementation == "eager":
                    eager = model.attention(layer).source.attention_interface_1.output[1].save()
                z = model.z(layer).save()
            real = slice(-4, None)  # the short row's own positions
            assert torch.allclose(expected[1], z[1], atol=2e-6)
            assert torch.allclose(expected[0, real], z[0, real], atol=2e-6)
            assert torch.allclose(pattern[1].sum(-1), torch.ones(()), atol=1e-6)
            if implementation == "eager":
                assert torch.allclose(eager[1], pattern[1], atol=2e-6)
                assert torch.allclose(eager[0, :, real], pattern[0, :, real], atol=2e-6)
    finally:
        model.hf_model.set_attn_implementation("sdpa")


def test_entropy_in_chunks_equals_entropy_of_eager_weights(model: HybridModel, monkeypatch):
    monkeypatch.setattr("segregation.interventions.apply.QUERY_CHUNK", 5)
    layer = model.attention_layers[0]
    with torch.no_grad(), model.trace(TEXT):
        call = model.attention_call(layer)
        chunked = head_scores(call, "entropy", 3, 24).save()
    model.hf_model.set_attn_implementation("eager")
    try:
        with torch.no_grad(), model.trace(TEXT):
            weights = model.attention(layer).source.attention_interface_1.output[1].save()
    finally:
        model.hf_model.set_attn_implementation("sdpa")
    assert torch.allclose(-chunked, entropy(weights)[:, :, 3:24], atol=2e-6)


def test_window_cuts_the_pattern(build):
    model = build("recurrentgemma")
    with torch.no_grad(), model.trace(TEXT):
        pattern = model.pattern(model.attention_layers[0]).save()
    assert pattern[0, 0, -1].ne(0).sum() == WINDOW


def test_patterns_while_decoding_see_the_cache(model: HybridModel):
    layer = model.attention_layers[-1]
    with torch.no_grad(), model.generate(TEXT, max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        patterns = [].save()
        for _ in tracer.iter[:3]:
            patterns.append(model.pattern(layer))
    n = len(model.encode(TEXT))
    keys = [n, min(n + 1, model.window or n + 1), min(n + 2, model.window or n + 2)]
    assert [p.shape[-2:] for p in patterns] == [(n, keys[0]), (1, keys[1]), (1, keys[2])]
    assert all(torch.allclose(p.sum(-1), torch.ones(()), atol=1e-6) for p in patterns)


def test_states_are_copies_that_follow_the_steps(model: HybridModel):
    layer = model.recurrent_layers[0]
    with torch.no_grad(), model.generate(TEXT, max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        states = [].save()
        for _ in tracer.iter[:3]:
            states.append(model.state(layer))
        ids = tracer.result.save()
    n = len(model.encode(TEXT))
    for step, state in enumerate(states):
        with torch.no_grad(), model.trace(ids[:, : n + step]):
            again = model.state(layer)
            recurrent, conv = again.recurrent.save(), again.conv.save()
        assert torch.allclose(state.recurrent, recurrent, atol=1e-5)
        taps = min(conv.shape[-1], state.conv.shape[-1])
        assert torch.allclose(state.conv[..., -taps:], conv[..., -taps:], atol=1e-5)
    assert not torch.equal(states[0].recurrent, states[1].recurrent)


def test_samples_are_prompts(model: HybridModel):
    sample = Sample(id="a", prompt=TEXT, target="x")
    assert torch.equal(generated(model, sample), generated(model, TEXT))
    assert torch.equal(generated(model, [sample, sample])[1:], generated(model, TEXT))
    assert generated(model, sample)[0, : len(model.encode(sample))].tolist() == model.encode(sample)


def test_runs_do_not_leak_into_each_other(model: HybridModel):
    for prompt in (torch.tensor([[7]]), TEXT):
        first = generated(model, prompt)
        generated(model, "klm abc")
        with pytest.raises(ZeroDivisionError), torch.no_grad(), model.trace("an aborted run"):
            model.attention(model.attention_layers[0]).output[0][:] = 1 / 0
        assert torch.equal(generated(model, prompt), first)


def test_left_padded_generation_equals_singles(model: HybridModel):
    texts = ["ab", TEXT, "k", "abc defg"]
    batch = generated(model, texts)
    for row, text in enumerate(texts):
        assert batch[row, -6:].tolist() == generated(model, text)[0, -6:].tolist()


def test_unequal_invokes_equal_singles(model: HybridModel):
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke("abc"):
            short = model.output.logits[:, -1].save()
        with tracer.invoke(TEXT):
            long = model.output.logits[:, -1].save()
    for got, text in ((short, "abc"), (long, TEXT)):
        with torch.no_grad():
            assert torch.allclose(got, model.trace(text, trace=False).logits[:, -1], atol=2e-6)


def test_without_the_fix_padding_would_change_recurrentgemma():
    ids, mask = torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
    module = random_module("recurrentgemma")

    def gap() -> float:
        positions = torch.tensor([[0, 0, 0, 1, 2]])
        with torch.no_grad():
            padded = module(ids, attention_mask=mask, position_ids=positions).logits[:, 2:]
            return float((padded - module(ids[:, 2:]).logits).abs().max())

    assert gap() > 1e-2
    keep_padding_out(module, [m for name, m in module.named_modules() if name.endswith("linear_x")])
    assert gap() < 2e-6


def test_what_decoding_refuses(model: HybridModel):
    if model.family.name == "recurrentgemma":
        with pytest.raises(ModelError, match=r"num_beams=2.*use num_beams=1"):
            model.generate(TEXT, num_beams=2, max_new_tokens=2)
    with pytest.raises(ModelError, match="prefill_chunk_size feeds several tokens"):
        model.generate(TEXT, prefill_chunk_size=4, max_new_tokens=2)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([0, 5], r"row 0 must be 1 to its 4 tokens .*got 0; count"),
        ([2, 28], r"row 1 must be 1 to its 27 tokens .*got 28; count"),
        (torch.tensor([5, 27]), r"row 0 must be 1 to its 4 tokens \(padding not counted\), got 5"),
        ([3], r"each of the 2 rows, got \[3\]; give a list"),
        ([3, 3, 3], r"each of the 2 rows, got \[3, 3, 3\]"),
    ],
)
def test_prompt_lengths_that_are_no_part_of_their_rows(model: HybridModel, lengths, message: str):
    with pytest.raises(ModelError, match=message), torch.no_grad():
        model.trace(["abc", TEXT], prompt_lengths=lengths, trace=False)
    with torch.no_grad():
        model.trace(["abc", TEXT], prompt_lengths=[4, 1], trace=False)


def test_layers_that_are_not_there(model: HybridModel):
    with pytest.raises(ModelError, match=r"one of the attention layers .*got 0, which is recurrent"):
        model.attention(0)
    with pytest.raises(ModelError, match=r"got 99, which is absent"):
        model.mixer(99)


def test_a_prompt_that_does_not_fit(build):
    model = build("jamba", max_position_embeddings=20)
    with pytest.raises(ModelError, match=r"27 tokens and 6 new ones need 33 positions, but random-jamba takes 20"):
        generated(model, TEXT)


def test_generation_after_right_padding_is_refused(model: HybridModel):
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(ModelError, match=r"padding in the rows \[1\]; pad at the left"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
    with torch.no_grad():
        model.trace(ids, attention_mask=mask, trace=False)  # one forward pass is right
