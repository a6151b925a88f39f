import dataclasses

import pytest
import torch

from segregation.errors import ModelError
from segregation.models.checks import apply_checks, quick_checks, run_checks, summarise
from segregation.models.checks_outcome import Check, Question, Tolerances, ask, generated, largest_gap, prompts
from segregation.models.hybrid import HybridModel

TOLERANCES = Tolerances(noise=1e-4, part=1e-5, repeat=0.0)
PIECE = "several tokens may follow a cache"


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.failed]


def test_all_checks_that_anything_follows_from_pass(model: HybridModel):
    checks = run_checks(model)
    assert len(by_name(checks)) == len(checks) == 14
    assert {check.outcome for check in checks if check.consequence != "reported"} == {"pass"}
    assert all(check.seconds > 0 for check in checks)


def test_what_is_only_reported_switches_nothing_off(model: HybridModel):
    checks = [*run_checks(model), Check("x", "fail", 1.0, 0.1, "reported")]
    apply_checks(model, checks)
    assert (model.can_batch, model.can_fork, model.description["switched_off"]) == (True, True, [])
    summary = summarise(model, checks)
    assert (summary["refused"], summary["switched_off"], summary["device"]) == (False, [], "cpu")
    assert summary["checks"] == model.description["self_checks"] == [dataclasses.asdict(check) for check in checks]


def test_states_that_do_not_go_on_into_a_piece_of_several_tokens_are_reported(build):
    model = build("bamba")
    assert not by_name(run_checks(model))[PIECE].failed

    def forget(_module, args, kwargs):
        cache, ids = kwargs.get("past_key_values"), args[0] if args else kwargs["input_ids"]
        if cache is not None and cache.get_seq_length() and ids.shape[1] > 1:
            for layer in model.recurrent_layers:
                cache.layers[layer].recurrent_states[0].zero_()

    model.hf_model.register_forward_pre_hook(forget, with_kwargs=True)
    checks = run_checks(model)
    assert failed(checks) == [PIECE]
    piece = by_name(checks)[PIECE]
    assert (piece.consequence, piece.measured > 1e-2) == ("reported", True)
    assert "go in one by one" in piece.note


def test_a_broken_padding_fix_is_noticed_and_batching_is_switched_off(build, monkeypatch):
    monkeypatch.setattr("segregation.models.hybrid.keep_padding_out", lambda *_: None)
    model = build("recurrentgemma")
    checks = by_name(run_checks(model))
    padded = checks["a left-padded batch equals its rows"]
    assert (padded.outcome, padded.consequence, padded.measured > 1e-2) == ("fail", "batching", True)
    assert checks["left-padded generation equals its rows"].failed
    assert checks["an equal-length batch equals its rows"].outcome == "pass"
    apply_checks(model, quick_checks(model))
    assert not model.can_batch
    assert model.can_fork
    assert model.description["switched_off"] == ["batching"]


def test_a_leaking_state_is_noticed_and_the_model_refused(build, monkeypatch):
    model = build("recurrentgemma")
    monkeypatch.setattr("segregation.models.hybrid.forget_states", lambda *_: None)
    checks = quick_checks(model)
    assert "a run is the same after another run" in failed(checks)
    with pytest.raises(ModelError, match=r"fails its self-checks: .*a run is the same after another run measured"):
        apply_checks(model, checks)


def test_a_fork_that_moves_nothing_is_noticed_and_forking_is_switched_off(build, monkeypatch):
    """The second fork then goes on with what the first one wrote."""
    model = build("jamba")
    monkeypatch.setattr(
        "segregation.models.memory._twin", lambda cache: cache if len(cache.layers) else pytest.fail("no cache")
    )
    checks = quick_checks(model)
    assert failed(checks) == ["two forks of a prefix equal one forward"]
    apply_checks(model, checks)
    assert model.can_batch
    assert not model.can_fork


def test_a_check_with_nothing_to_switch_off_refuses_the_model(model: HybridModel):
    with pytest.raises(ModelError, match=r"fails its self-checks: x measured 1\.00e\+00, tolerance 1e-05"):
        apply_checks(model, [Check("x", "fail", 1.0, 1e-5, "refused")])
    with pytest.raises(ModelError, match=r"x was stopped by RuntimeError: no such thing"):
        apply_checks(model, [Check("x", "fail", None, 1e-5, "refused", "stopped by RuntimeError: no such thing")])


def test_a_model_that_breaks_down_under_a_check_fails_it(model: HybridModel):
    def breaks(_: HybridModel) -> float:
        raise RuntimeError("shapes do not fit\nhere")

    check = ask(model, Question("x", breaks, "noise", "fork"), TOLERANCES)
    assert (check.outcome, check.measured, check.consequence) == ("fail", None, "fork")
    assert check.note == "stopped by RuntimeError: shapes do not fit"


def test_what_cannot_be_asked_is_not_done_and_says_why(build):
    model = build("jamba", attn_layer_period=100, attn_layer_offset=99)
    skipped = {check.name: check.note for check in run_checks(model) if check.outcome == "not done"}
    assert skipped == dict.fromkeys(
        ["pattern @ v equals z", "eager equals sdpa, padding included"], "the model has no attention layers"
    )


@pytest.mark.parametrize(("known", "consequence"), [("made so", "reported"), ("", "refused")])
def test_what_is_known_of_a_family_is_reported_with_its_number(model, known, consequence):
    question = Question("x", lambda _: 0.5, "noise", "refused", known=lambda _: known)
    found = ask(model, question, TOLERANCES)
    assert found == Check("x", "fail", 0.5, 1e-4, consequence, known, found.seconds)


def test_prefill_and_decode_of_a_family_that_clamps_are_two_functions(build):
    """A clamp that is never reached does nothing, and the two are one; the fork is right either way."""
    clamped, free = (by_name(run_checks(build("zamba2", time_step_min=least))) for least in (0.05, 1e-9))
    name = "one forward equals one token at a time"
    assert (clamped[name].outcome, clamped[name].consequence) == ("fail", "reported")
    assert "generation and log-likelihood are two functions here" in clamped[name].note
    assert "time_step_min=0.05" in clamped[name].note
    assert clamped[name].measured > 100 * free[name].measured
    assert free[name].outcome == "pass"
    assert [checks["two forks of a prefix equal one forward"].outcome for checks in (clamped, free)] == ["pass"] * 2


def test_tolerances_follow_the_dtype_and_the_spread_of_the_logits(build):
    model = build("jamba")
    assert Tolerances.of(model).noise == pytest.approx(1e-4)  # its logits spread by less than 1
    model.hf_model.lm_head.weight.data *= 100
    with torch.no_grad():
        spread = float(model.hf_model(prompts(model)).logits.std())
    assert Tolerances.of(model).noise == pytest.approx(1e-4 * spread)
    model.hf_model.to(torch.bfloat16)
    assert Tolerances.of(model).noise == pytest.approx(0.25 * spread, rel=0.05)


def test_runs_are_compared_up_to_the_first_token_in_which_they_differ(model: HybridModel):
    tokens, logits = generated(model, prompts(model))
    assert (logits.argmax(-1) == tokens).all()
    other = tokens.clone()
    other[:, 1] += 1
    later = logits.clone()
    later[:, 2:] += 5
    assert largest_gap((tokens, logits), (other, later)) == 0
    assert largest_gap((tokens, logits), (tokens, later)) == pytest.approx(5)


def test_checks_leave_no_state(model: HybridModel):
    with torch.no_grad():
        before = model.trace("abc", trace=False).logits
        run_checks(model)
        assert torch.equal(model.trace("abc", trace=False).logits, before)


def test_what_is_no_number_passes_no_check(build):
    model = build("jamba")
    with torch.no_grad():
        model.mixer(0)._module.in_proj.weight[0] = torch.nan
    checks = {check.name: check for check in run_checks(model)}
    assert not [name for name, check in checks.items() if check.outcome == "pass"]
    assert {check.measured for check in checks.values()} == {None}
    assert checks["pattern @ v equals z"].note == "no number (NaN)"
