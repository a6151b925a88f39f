import pytest

from segregation.interventions.phase import Phase
from segregation.interventions.phase_cells import cell_of, cells
from segregation.interventions.recurrent_rules import AblateRecurrent
from segregation.interventions.rules import AblateHeads, AblateMixer, Plan


def test_every_cell_is_found_again_by_its_plan() -> None:
    every = cells(("attention", "recurrent", "both"), ("zero", "skip"))
    assert len(every) == len({cell.plan() for cell in every}) == 7 * (1 + 2 + 2)
    assert [cell_of(cell.plan()) for cell in every] == every


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(AblateMixer()),
        Plan(AblateHeads(((2, 0),))),
        Plan(AblateRecurrent(layers=(1,))),
        Plan(AblateRecurrent(span="context")),
        Plan(AblateHeads(during=Phase.LAST), AblateRecurrent(during=Phase.DECODE)),
        Plan(AblateHeads(during=Phase.LAST), AblateHeads(during=Phase.DECODE)),
    ],
    ids=str,
)
def test_other_plans_are_no_cells(plan: Plan) -> None:
    assert cell_of(plan) is None
