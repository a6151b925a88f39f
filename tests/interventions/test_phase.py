import pytest
import torch

from segregation.errors import PlanError
from segregation.interventions.phase import Phase, phase_numbers
from tests.conftest import phase_mask

POSITIONS = torch.tensor([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4], [-1, -1, -1, -1, 0]])
LENGTHS = torch.tensor([2, 4, 1])


def test_numbers_and_masks_say_the_same():
    numbers = phase_numbers(POSITIONS, LENGTHS)
    assert numbers.tolist() == [[3, 3, 0, 1, 2], [0, 0, 0, 1, 2], [3, 3, 3, 3, 1]]
    for number, phase in enumerate((Phase.PREFILL, Phase.LAST, Phase.DECODE)):
        assert torch.equal(phase_mask(phase, POSITIONS, LENGTHS), numbers == number)
    assert torch.equal(phase_mask(Phase.ALL, POSITIONS, LENGTHS), POSITIONS >= 0)


@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.GENERATION, Phase.ALL, Phase.PREFILL | Phase.DECODE])
def test_text_round_trip(phase: Phase):
    assert Phase.parse(str(phase)) == phase


def test_unknown_phase_is_named():
    with pytest.raises(PlanError, match=r"PREFILL, LAST, DECODE.*'DECODING'"):
        Phase.parse("DECODING")
