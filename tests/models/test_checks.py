import pytest
import torch

from segregation.errors import ModelError
from segregation.models.checks import Check, apply_checks, quick_checks, run_checks
from segregation.models.hybrid import HybridModel


def test_all_checks_pass(model: HybridModel):
    checks = run_checks(model)
    assert len({check.name for check in checks}) == len(checks) == 8
    assert [check.name for check in checks if not check.passed] == []


def test_a_broken_padding_fix_is_noticed_and_batching_is_switched_off(build, monkeypatch):
    monkeypatch.setattr("segregation.models.hybrid.keep_padding_out", lambda *_: None)
    model = build("recurrentgemma")
    checks = quick_checks(model)
    failed = [check for check in checks if not check.passed]
    assert [check.switched_off for check in failed] == ["batching"]
    assert failed[0].measured > 1e-2
    apply_checks(model, checks)
    assert not model.can_batch
    assert model.description["switched_off"] == ["batching"]


def test_a_leaking_state_is_noticed(build, monkeypatch):
    model = build("recurrentgemma")
    monkeypatch.setattr("segregation.models.hybrid.forget_states", lambda *_: None)
    assert "no state leaks from run A to B to A" in [check.name for check in quick_checks(model) if not check.passed]


def test_a_check_with_nothing_to_switch_off_refuses_the_model(model: HybridModel):
    with pytest.raises(ModelError, match=r"fails its self-checks: x measured 1\.00e\+00, tolerance 1e-05"):
        apply_checks(model, [Check("x", False, 1.0, 1e-5)])


def test_checks_leave_no_state(model: HybridModel):
    with torch.no_grad():
        before = model.trace("abc", trace=False).logits
        run_checks(model)
        assert torch.equal(model.trace("abc", trace=False).logits, before)
