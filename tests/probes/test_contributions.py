"""Contributions against each other, against what the layers emit, and against products written out by hand."""

import math

import pytest
import torch

from segregation.errors import ModelError, PlanError, SampleError
from segregation.models.hybrid import HybridModel
from segregation.models.load import load_model
from segregation.models.recurrence import Recurrence, outputs
from segregation.probes import contributions
from segregation.probes.contributions import contribution_norms, contribution_vectors, norms_bytes, vectors_bytes
from segregation.probes.shares import estimate_bytes, norm_share, positions_named, projection_share, span_shares
from segregation.prompts.sample import Sample
from segregation.prompts.spans import sample_spans
from tests.conftest import RECURRENT_FAMILIES, random_module
from tests.models.test_scan_inputs import TEXT, assert_near, read

SAMPLE = Sample("a", TEXT, "x", spans={"needle": ((4, 9),), "question": ((30, 40),)})


def random_recurrence(seed: int = 0, *, groups: int = 2) -> Recurrence:
    """Two rows of 12 tokens, 4 heads of 3 in groups, d_state 5, with a reset."""
    generator = torch.Generator().manual_seed(seed)
    write = torch.randn(2, 12, 4, 3, generator=generator)
    keys, reads = (torch.randn(2, 12, groups, 5, generator=generator) for _ in range(2))
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[1, 6] = True
    return Recurrence(torch.rand(2, 12, 4, generator=generator), -torch.rand(4, 5), reset, write, keys, reads)


def written_out(r: Recurrence, row: int, dest: int, src: int) -> torch.Tensor:
    """C_t (prod_{i=s+1..t} A_i) B_s w_s as a product of diagonal matrices, head by head."""
    heads = []
    for head in range(r.step.shape[2]):
        group = head // (r.step.shape[2] // r.keys.shape[2])
        total = torch.eye(r.keys.shape[-1])
        for i in range(src + 1, dest + 1):
            a = torch.diag(torch.exp(r.rate[head] * r.step[row, i, head]))
            total = torch.zeros_like(a) if r.reset[row, i] else a @ total
        scale = r.reads[row, dest, group] @ total @ r.keys[row, src, group]
        heads.append(scale * r.write[row, src, head])
    return torch.cat(heads)


def test_contributions_are_the_products_written_out():
    r = random_recurrence()
    vectors = contribution_vectors(r, [11, 7, 0], [10, 6, 5, 0])
    for row in range(2):
        for i, dest in enumerate((11, 7, 0)):
            for j, src in enumerate((10, 6, 5, 0)):
                expected = written_out(r, row, dest, src) if src <= dest else torch.zeros(12)
                torch.testing.assert_close(vectors[row, i, j], expected, atol=1e-6, rtol=1e-5)
    assert not vectors[1, 0, 2:].any() and vectors[0, 0, 2:].all()  # nothing passes a reset


@pytest.mark.parametrize("name", [*RECURRENT_FAMILIES, "tiny-recurrentgemma", "tiny-jamba"])
def test_contributions_add_up_to_what_the_layer_emits(name: str, build):
    """The scan's own output in a run of the model, every channel of a few tokens; random models and the shipped."""
    model = build(name) if name in RECURRENT_FAMILIES else load_model(name)
    for recurrence, output in read(model, TEXT).values():
        dests = [0, 3, recurrence.write.shape[1] - 1]
        total = contribution_vectors(recurrence, dests).sum(2).unflatten(-1, output.shape[2:])
        total = total if recurrence.skip is None else total + recurrence.skip[:, dests]
        total = total if recurrence.gate is None else total * recurrence.gate[:, dests]
        assert_near(total, output[:, dests])


def test_norms_are_those_of_the_vectors_in_chunks(monkeypatch):
    r = random_recurrence(1)
    expected = contribution_vectors(r, range(12)).norm(dim=-1)
    torch.testing.assert_close(contribution_norms(r), expected)
    monkeypatch.setattr(contributions, "DESTS", 5)
    torch.testing.assert_close(contribution_norms(r), expected)
    torch.testing.assert_close(contribution_norms(r, [9, 2]), expected[:, [9, 2]])


def test_bytes_are_counted_before_and_refused_above_the_limit():
    r = random_recurrence()
    vectors, wanted = contribution_vectors(r, [3, 4]), 2 * vectors_bytes(2, 12, 4, 3, 5)
    assert vectors.nbytes < wanted
    assert torch.equal(contribution_vectors(r, [3, 4], max_bytes=wanted), vectors)
    with pytest.raises(ModelError, match=rf"{wanted:,} bytes .2 destinations, 12 sources.*max_bytes is {wanted - 1:,}"):
        contribution_vectors(r, [3, 4], max_bytes=wanted - 1)
    wanted = 2 * norms_bytes(12, 12, 4, 5)
    assert contribution_norms(r, max_bytes=wanted).nbytes < wanted
    with pytest.raises(ModelError, match="ask for fewer destinations"):
        contribution_norms(r, max_bytes=wanted - 1)


def test_positions_that_are_not_there_and_filled_memories_are_refused():
    r = random_recurrence()
    for dests in ([], [12], [-1], [3, 3]):
        with pytest.raises(ModelError, match=r"0\.\.11"):
            contribution_norms(r, dests)
    filled = Recurrence(r.step, r.rate, r.reset, r.write, r.keys, r.reads, initial=torch.ones(2, 4, 3, 5))
    with pytest.raises(ModelError, match="filled memory"):
        contribution_norms(filled)


def test_shares_of_spans_that_part_all_tokens_add_up_to_one(any_scan: HybridModel):
    spans = ("needle", "question", "rest")
    rest = tuple((start, stop) for start, stop in ((0, 4), (9, 30), (40, len(TEXT))))
    sample = Sample("a", TEXT, "x", spans={**SAMPLE.spans, "rest": rest})
    ids = len(any_scan.encode(sample))
    parts = [span_shares(any_scan, sample, src, "last+new", new_tokens=[5, 6, 7]) for src in (*spans, "new")]
    first = [span_shares(any_scan, Sample("b", TEXT, "x", spans={"bos": ((0, 1),)}), "everything", "last")]
    assert [share.layer for share in parts[0]] == list(any_scan.recurrent_layers) and parts[0][0].dests == 4
    assert all(math.isclose(one.by_norm, 1, rel_tol=1e-5) for one in first[0])
    for by_layer in zip(*parts, strict=True):
        missing = bos_share(any_scan, sample, by_layer[0].layer, range(ids - 1, ids + 3))
        assert math.isclose(sum(share.by_norm for share in by_layer) + missing[0], 1, rel_tol=1e-5)
        assert math.isclose(sum(share.by_projection for share in by_layer) + missing[1], 1, rel_tol=1e-4)


def bos_share(model: HybridModel, sample: Sample, layer: int, dests: range) -> tuple[float, float]:
    """What <bos>, which no span of the text holds, has of a layer."""
    recurrence, _ = read(model, torch.tensor([[*model.encode(sample), 5, 6, 7]]), spans=[None])[layer]
    first = torch.arange(recurrence.write.shape[1]) == 0
    vectors = contribution_vectors(recurrence, list(dests))
    whole = outputs(recurrence)[0].flatten(2)[:, list(dests)]
    norms = vectors.norm(dim=-1)
    projected = (vectors[:, :, 0] * whole).sum(-1) / whole.square().sum(-1)
    assert torch.allclose(projection_share(recurrence, first[None])[:, list(dests)], projected, atol=1e-5)
    return float(norm_share(norms, first).mean()), float(projected.mean())


def test_positions_are_named_by_spans(tokenizer):
    spans = sample_spans(tokenizer, SAMPLE)
    assert positions_named(spans, "needle+last", 48, 50) == [5, 6, 7, 8, 9, 47]
    with pytest.raises(SampleError, match="new_tokens"):
        positions_named(spans, "new", 48, 48)
    with pytest.raises(SampleError, match="has the spans"):
        positions_named(spans, "nothing", 48, 48)


def test_models_and_layers_without_a_state_are_refused(any_scan: HybridModel, tokenizer):
    with pytest.raises(ModelError, match="recurrent layers"):
        span_shares(any_scan, SAMPLE, dest="last", layers=any_scan.attention_layers[:1])
    with pytest.raises(PlanError, match="layers"):
        span_shares(any_scan, SAMPLE, dest="last", layers=())
    attention = HybridModel(random_module("recurrentgemma", block_types=["attention"]), tokenizer)
    with pytest.raises(ModelError, match="no recurrent layers"):
        span_shares(attention, SAMPLE, dest="last")


def test_shares_are_refused_before_anything_runs(any_scan: HybridModel):
    share = span_shares(any_scan, SAMPLE, "needle", "last")[0]
    n = len(any_scan.encode(SAMPLE))
    assert (
        math.isclose(share.even, 5 / n, rel_tol=1e-6) and share.dests == 1
    )  # five bytes of n tokens, all of them before the last
    enough = estimate_bytes(any_scan, n, 1)
    assert span_shares(any_scan, SAMPLE, "needle", "last", max_bytes=enough)[0] == share
    with pytest.raises(ModelError, match="ask for fewer destinations"):
        span_shares(any_scan, SAMPLE, "needle", "last", max_bytes=enough - 1)
