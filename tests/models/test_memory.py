import torch

from segregation.models.hybrid import HybridModel
from segregation.models.memory import merge
from segregation.runs.launch import prefill


def step(model: HybridModel, memory, tokens: list[int]) -> torch.Tensor:
    """Logits after one more token in every row, from a copy of the memory."""
    rows = torch.arange(len(tokens))
    lengths = memory.lengths
    width = int(lengths.max())
    mask = torch.arange(width + 1) >= width - lengths[:, None]
    with torch.no_grad():
        return model.hf_model(
            torch.tensor(tokens)[:, None],
            attention_mask=mask.long(),
            position_ids=lengths[:, None],
            past_key_values=model.recall(memory.select(rows)),
            use_cache=True,
        ).logits[:, -1]


def test_merged_rows_go_on_as_alone(model: HybridModel):
    prompts = [tuple(range(5, 5 + n)) for n in (3, 30, 17, 2)]
    with torch.no_grad():
        parts = [prefill(model, [prompt]) for prompt in prompts]
        together = prefill(model, prompts)
        whole = [model.trace(torch.tensor([prompt]), trace=False).logits[0, -1] for prompt in prompts]
    last = [prompt[-1] for prompt in prompts]
    for memory in (merge(parts), together):
        assert torch.allclose(step(model, memory, last), torch.stack(whole), atol=1e-5)


def test_a_row_taken_from_a_padded_batch_goes_on_as_alone(model: HybridModel):
    prompts = [tuple(range(5, 5 + n)) for n in (30, 9, 17)]
    with torch.no_grad():
        together = prefill(model, prompts)
        for row, prompt in enumerate(prompts):
            alone = model.trace(torch.tensor([prompt]), trace=False).logits[0, -1]
            taken = together.select(torch.tensor([row])).trimmed()
            assert torch.allclose(step(model, taken, [prompt[-1]])[0], alone, atol=1e-5)


def test_a_memory_survives_its_forks(model: HybridModel):
    with torch.no_grad():
        memory = prefill(model, [tuple(range(5, 25))])
    first = step(model, memory, [9])
    forked = memory.select(torch.zeros(3, dtype=torch.long))
    assert torch.allclose(step(model, forked, [9, 10, 9])[[0, 2]], first.expand(2, -1), atol=1e-5)
    assert torch.equal(step(model, memory, [9]), first)
