import pytest

from segregation.interventions.phase import Phase
from segregation.interventions.presets import paper
from segregation.interventions.rules import Plan
from segregation.interventions.token_rules import BalanceTokens, HideAll, HideTokens, OnlyTokens, TokenRule
from segregation.interventions.visibility import MODES, PHASES, View
from segregation.report.names import plan_name


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (HideTokens("needle", during=Phase.GENERATION), "needle hidden in generation"),
        (HideTokens("needle", occurrence=0), "needle hidden (first copy) in all phases"),
        (HideTokens("needle", occurrence=3, during=Phase.DECODE), "needle hidden (4th copy) in the new tokens"),
        (paper(HideTokens("needle", during=Phase.PREFILL)), "needle hidden in prefill, the paper's way"),
        (OnlyTokens("needle+question", layers=(2, 5)), "only the needle and question for 2 layers in all phases"),
        (OnlyTokens("context", but="needle"), "only the context without the needle in all phases"),
        (OnlyTokens("needle", heads=((2, 0), (5, 1))), "only the needle for 2 named heads in all phases"),
        (BalanceTokens("needle", during=Phase.LAST), "only the needle, balanced, in the last prompt token"),
        (HideTokens("context", but="needle"), "context hidden, needle kept, in all phases"),
        (HideTokens("needle", renormalize=False), "needle hidden in all phases, not renormalised"),
        (HideTokens("needle", causal=False), "needle hidden in all phases, rows with nothing left too"),
        (HideAll(during=Phase.PREFILL), "everything hidden in prefill"),
    ],
)  # fmt: skip
def test_rules_about_tokens_in_words(rule: TokenRule, name: str) -> None:
    assert plan_name(Plan(rule)) == name


def test_different_cells_of_a_map_have_different_names() -> None:
    views = [View(mode, at, how) for mode in MODES for at in PHASES for how in ("default", "paper")]
    views += [View("needle hidden", at, occurrence=copy) for at in PHASES for copy in (0, 1)]
    plans = {view.plan for view in views}
    assert len({plan_name(plan) for plan in plans}) == len(plans)
