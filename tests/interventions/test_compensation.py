"""The settings of a search for compensation: their plans, and that the controls do what they are for."""

from collections.abc import Callable

import pytest

from segregation.errors import PlanError
from segregation.interventions.compensation import ATTENTION, CONTROLS, SETTINGS, Setting, possible, setting_of
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, Plan
from segregation.models.hybrid import HybridModel
from segregation.prompts.foil import foils
from segregation.prompts.sample import Sample
from segregation.runs.loglikelihood import loglikelihood
from segregation.scores.retrieval import target_loglikelihood


def test_every_plan_says_which_setting_it_is() -> None:
    assert len(SETTINGS) == 2 * len(ATTENTION)
    for setting in (*SETTINGS, *CONTROLS):
        assert setting_of(setting.plan) == setting
        assert setting_of(Plan.from_json(setting.plan.to_json())) == setting
    assert setting_of(Plan(AblateHeads("all", during=Phase.DECODE))) is None


def test_models_of_one_kind_leave_out_what_they_have_no_layers_for() -> None:
    def names(layer_types: list[str]) -> list[tuple[str, str]]:
        return [(s.attention, s.recurrence) for s in possible((*SETTINGS, *CONTROLS), layer_types)]

    assert names(["attention"]) == [(attention, "reads all") for attention in ATTENTION]
    recurrences = ("reads all", "skips distractors", "skips the needle")
    assert names(["recurrent"]) == [("untouched", recurrence) for recurrence in recurrences]
    assert len(names(["recurrent", "attention"])) == len(SETTINGS) + len(CONTROLS)


def test_what_is_left_out_would_be_refused(build: Callable[..., HybridModel]) -> None:
    attention_only = build("jamba", attn_layer_period=1, attn_layer_offset=0)
    with pytest.raises(PlanError, match="layers that random-jamba does not have"):
        attention_only.intervene(Setting(recurrence="skips distractors").plan)


def test_where_neither_side_reads_the_needle_its_answer_gains_nothing(any_scan: HybridModel) -> None:
    """With attention ablated, a needle that the recurrent layers skip might as well say something else: a gain of 0."""
    question, needle = "What is the key of Zorb?", "The key of Zorb is ink."
    prompt = f"{question} Hay and hay. {needle} Hay"  # the needle near the end: random states forget soon
    spans = {"question": ((0, len(question)),), "needle": ((len(prompt) - 4 - len(needle), len(prompt) - 4),)}
    sample = Sample(id="a", prompt=prompt, target=needle, spans={**spans, "context": ((25, len(prompt)),)})
    (foil,) = foils(any_scan.tokenizer, [sample])
    plans = [setting.plan for setting in (Setting("ablated", "skips the needle"), Setting("ablated"), Setting())]

    def scores(one: Sample) -> list[float]:
        return [target_loglikelihood(record) for record in loglikelihood(any_scan, [one], plans)]

    blind, recurrent, whole = (own - other for own, other in zip(scores(sample), scores(foil), strict=True))
    assert blind == pytest.approx(0, abs=2e-5)
    assert abs(recurrent) > 1e-3 < abs(whole)


def test_a_setting_that_is_none_is_refused_with_the_list() -> None:
    with pytest.raises(PlanError, match=r"Setting\.attention is one of untouched, ablated in generation"):
        Setting("ablate")
    with pytest.raises(PlanError, match=r"Setting\.recurrence is one of reads all"):
        Setting("ablated", "skips")
