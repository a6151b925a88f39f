"""Every contract is tested on every family of the registry."""

import pytest

from segregation.models.family import families
from tests.contract import subjects

FAMILIES = sorted(family.name for family in families().values())


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of one family; its tests run one after the other."""
    return request.param


@pytest.fixture
def subject(family: str) -> subjects.Subject:
    """Its model, wrapped and plain."""
    return subjects.subject(family)
