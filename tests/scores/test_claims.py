from pathlib import Path

import pytest

from segregation.errors import RecordError
from segregation.scores.claims import Claim, read_claims, write_claims

CLAIM = Claim("jrt", "no recovery", "m", None, 0.0, 0.0, 0.04, 100, "holds", ("generate:*:abc*",), "a note")


def test_claims_survive_their_file(tmp_path: Path) -> None:
    write_claims([CLAIM], tmp_path / "claims.json")
    assert read_claims(tmp_path / "claims.json") == [CLAIM]


@pytest.mark.parametrize(
    "text", ["", "{}x", '[{"id": "jrt"}]', '[{"id": "jrt", "verdict": "maybe"}]', '[{"verdict": "holds"}]']
)
def test_a_file_that_holds_no_claims_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(RecordError, match=r"claims|verdict"):
        read_claims(tmp_path / "claims.json")
