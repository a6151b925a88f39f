import numpy as np
import pytest
import torch

from segregation.errors import ModelError
from segregation.models.inputs import check_rows, check_token_ids


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_token_ids_of_the_whole_vocabulary_pass(dtype: torch.dtype) -> None:
    check_token_ids(torch.tensor([[0, 9], [3, 4]], dtype=dtype), rows=2, d_vocab=10)


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([[1]], "whole numbers, .* got list"),
        (torch.zeros(1, 1), "whole numbers, .* got torch.float32"),
        (torch.zeros(1, 1, dtype=torch.bool), "whole numbers, .* got torch.bool"),
        (torch.zeros(1, dtype=torch.long), r"a tensor of \(1, n\) token ids; got one of \(1,\)"),
        (torch.zeros(1, 0, dtype=torch.long), r"got one of \(1, 0\)"),
        (torch.zeros(2, 3, dtype=torch.long), r"here are 1 rows, .* got one of \(2, 3\)"),
        (torch.tensor([[10, 3]]), "0 to 9; got 3 to 10"),
        (torch.tensor([[3, -1]]), "0 to 9; got -1 to 3"),
    ],
)
def test_what_are_no_token_ids_is_refused(tokens: object, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        check_token_ids(tokens, rows=1, d_vocab=10)


def test_rows_are_any_whole_numbers_of_a_batch() -> None:
    assert check_rows(list(np.array([1, 0, 1])), n_rows=2) == [1, 0, 1]


@pytest.mark.parametrize("rows", [[], [2], [-1], [0.0], ["0"], "0", 0, [True], [None]])
def test_rows_that_there_are_not_are_refused(rows: object) -> None:
    with pytest.raises(ModelError, match=r"here are the rows 0\.\.1, got"):
        check_rows(rows, n_rows=2)
