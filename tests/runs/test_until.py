import pytest
import torch

from segregation.interventions.rules import AblateHeads, Plan
from segregation.runs.generate import generate
from segregation.runs.launch import Row
from segregation.runs.until import Ending, write_rows

LIMIT = 24


def rows_of(model, samples, plan=Plan()):  # noqa: B008 (a frozen value)
    return [Row(index, tuple(model.encode(sample)), plan) for index, sample in enumerate(samples)]


@pytest.mark.parametrize("plan", [Plan(), Plan(AblateHeads())], ids=str)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_without_stops_it_is_generate(model, samples, plan, batch_size):
    endings = [Ending(limit=1 + 3 * index) for index in range(len(samples))]
    written = {
        one.row.index: one.tokens for one in write_rows(model, rows_of(model, samples, plan), endings, batch_size)
    }
    for index, (sample, ending) in enumerate(zip(samples, endings, strict=True)):
        [record] = generate(model, [sample], plan, max_new_tokens=ending.limit)
        assert written[index] == record.tokens


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_ends_with_the_first_token_that_completes_one_of_its_stops(model, samples, batch_size):
    free = [record.tokens for record in generate(model, samples, max_new_tokens=LIMIT)]
    texts = [model.tokenizer.decode(list(tokens)) for tokens in free]
    endings = [Ending(LIMIT, (text[3:5], "never written", "")) for text in texts]
    written = list(write_rows(model, rows_of(model, samples), endings, batch_size))
    assert [one.row.index for one in written] == list(range(len(samples)))
    cut = 0
    for one, tokens, ending in zip(written, free, endings, strict=True):
        ends = [n for n in range(1, len(tokens) + 1) if ending.stops[0] in model.tokenizer.decode(list(tokens[:n]))]
        assert one.tokens == tokens[: min(ends, default=len(tokens))]
        cut += len(one.tokens) < len(tokens)
    assert cut >= 4


def test_a_special_token_can_be_a_stop(model, samples):
    def likes_bos(_module, _inputs, logits):
        return logits.index_fill(-1, torch.tensor([2]), 1e3)

    handle = model.hf_model.get_output_embeddings().register_forward_hook(likes_bos)
    try:
        [found] = write_rows(model, rows_of(model, samples[:1]), [Ending(LIMIT, ("<bos>",))])
    finally:
        handle.remove()
    assert found.tokens == (2,)
