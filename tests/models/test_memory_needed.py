import pytest
import torch
from transformers import AutoModelForCausalLM

from segregation.errors import ModelError
from segregation.interventions.apply import head_scores
from segregation.models import compiled_loops, entropy_blocks
from segregation.models.attention import QUERY_CHUNK, AttentionCall
from segregation.models.channels import layers_with, read_channel
from segregation.models.hybrid import HybridModel
from segregation.models.memory_needed import MemoryNeeded, memory_needed
from tests.conftest import byte_tokenizer
from tests.live import live_peak
from tests.tiny import CONFIGS, WINDOW, tiny_config


def real(family: str, dtype: torch.dtype) -> HybridModel:
    return HybridModel(AutoModelForCausalLM.from_config(tiny_config(family), dtype=dtype), byte_tokenizer())


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_those_of_the_real_module(family: str):
    module = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.bfloat16)
    stored = {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    assert memory_needed(module.config, 1, 5, torch.bfloat16).weights == sum(stored.values())


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_remembered_is_what_the_real_cache_holds(family: str):
    """Read channel by channel after a forward of more tokens than the window has."""
    model, rows, tokens = real(family, torch.bfloat16), 2, WINDOW + 5
    cache = model.new_cache()
    with torch.no_grad():
        ids = torch.full((rows, tokens), 7)
        model.hf_model(ids, use_cache=True, **{model.family.cache: cache})
    held = model.remember(cache, torch.full((rows,), tokens)).held
    kept = [
        read_channel(model, cache, layer, channel, held)
        for channel in ("keys", "values", "recurrent", "conv")
        for layer in layers_with(model, channel)
    ]
    bytes_kept = sum(tensor.nbytes for tensor in kept if tensor is not None)
    assert bytes_kept > 0
    needed = memory_needed(model.hf_model.config, rows, tokens, torch.bfloat16)
    assert needed.remembered == bytes_kept


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["recurrentgemma", "falcon_h1", "olmo_hybrid", "qwen3_5", "lfm2", "llama"])
def test_a_forward_stays_within_the_estimate_and_near_it(family: str, dtype: torch.dtype, implementation: str):
    """Tensors alive at once, counted operation by operation, where MLPs are wide as in published models."""
    config = tiny_config(family, hidden_size=128, intermediate_size=1024, num_attention_heads=8)
    module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=implementation).eval()
    cache, ids = HybridModel(module, byte_tokenizer()).new_cache(), torch.full((1, 256), 7)
    with torch.no_grad():
        got = live_peak(module, lambda: module(ids, use_cache=True, logits_to_keep=1, past_key_values=cache))
    needed = memory_needed(config, 1, 256, dtype)
    most = needed.total(*(["eager"] if implementation == "eager" else [])) - needed.weights
    assert 0.6 * most < got <= most


@pytest.mark.parametrize("compiled", [True, False])
def test_scores_of_heads_stay_within_the_estimate(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    if not compiled:
        monkeypatch.setattr(compiled_loops, "numba", None)
    heads, tokens, d_head = 4, 512, 16
    query, key = torch.randn(1, heads, tokens, d_head), torch.randn(1, heads, tokens, d_head)
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    call = AttentionCall(query, key, key, seen, 0.25, None)
    got = live_peak(torch.nn.Module(), lambda: head_scores(call, "entropy", 0, tokens))
    config = tiny_config("llama", hidden_size=heads * d_head, num_attention_heads=heads)
    most = memory_needed(config, 1, tokens, torch.float32).head_scores
    rows = entropy_blocks.QUERIES if compiled else 4 * QUERY_CHUNK  # numbers held for each head and key, at least
    least = rows * heads * tokens * 4
    assert least <= got <= most


def test_totals_and_growth():
    few, many = (memory_needed(tiny_config("jamba"), rows, 100, torch.float32) for rows in (1, 3))
    assert many.remembered == 3 * few.remembered
    assert many.weights == few.weights
    assert MemoryNeeded(1, 10, 100, 1000, 0, 5).total("head_scores", "all_logits") == 1116


def test_nothing_to_read_is_refused():
    with pytest.raises(ModelError, match=r"at least one row of one token, got 0 rows of 5"):
        memory_needed(tiny_config("jamba"), 0, 5, torch.float32)
