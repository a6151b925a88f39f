"""What recurrent layers carry, in records that a run folder fills and resumes."""

import pytest

from segregation.errors import ModelError, SampleError
from segregation.interventions.phase import Phase
from segregation.interventions.recurrent_rules import ResetState
from segregation.interventions.rules import Plan
from segregation.models.hybrid import HybridModel
from segregation.probes.carried import carried, carried_settings
from segregation.probes.shares import span_shares
from segregation.probes.spectrum import layer_memories
from segregation.prompts.sample import Sample
from segregation.runs.fill import fill_measurements
from segregation.runs.store import RunFolder
from tests.conftest import random_module
from tests.models.test_scan_inputs import TEXT

SAMPLES = [Sample(f"{i}", TEXT[i:], " xyz", spans={"needle": ((4, 9),)}) for i in range(2)]


def test_a_record_holds_what_the_probes_give(any_scan: HybridModel):
    new = any_scan.encode_continuation(" xyz")
    for sample, record in zip(SAMPLES, carried(any_scan, SAMPLES), strict=True):
        assert record.kind == "measurement" and record.sample_id == sample.id
        shares = span_shares(any_scan, sample, "needle", "last+new", new_tokens=new)
        memories = layer_memories(any_scan, sample, "last+new", new_tokens=new)
        for share, memory in zip(shares, memories, strict=True):
            layer = f"layer{share.layer}"
            assert record.values[f"{layer}/by_norm"] == share.by_norm
            assert record.values[f"{layer}/by_projection"] == share.by_projection
            assert record.values[f"{layer}/receptive_field"] == memory.receptive_field
            assert (f"{layer}/matrix_rank" in record.values) == (any_scan.family.scan != "rg_lru")


def test_a_folder_is_filled_once_and_a_plan_cuts_what_it_resets(any_scan: HybridModel, tmp_path):
    folder = RunFolder(tmp_path / "run", {"model": "m"})
    cut = Plan(ResetState(every=1, during=Phase.GENERATION))
    for made in (2, 0):
        for plan in (Plan(), cut):
            found = fill_measurements(
                folder,
                SAMPLES,
                lambda samples, plan=plan: carried(any_scan, samples, plan=plan),
                plan=plan,
                settings=carried_settings(),
            )
            assert found == made
    shares = {
        record.plan_hash: [value for name, value in record.values.items() if name.endswith("by_norm")]
        for record in folder.records()
    }
    assert max(shares[cut.hash]) == 0 < max(shares[Plan().hash])


def test_what_cannot_be_measured_is_refused(any_scan: HybridModel, tokenizer):
    attention = HybridModel(random_module("recurrentgemma", block_types=["attention"]), tokenizer)
    with pytest.raises(ModelError, match="no recurrent layers"):
        carried(attention, SAMPLES)
    with pytest.raises(SampleError, match="question"):
        list(carried(any_scan, SAMPLES, "question"))
