"""The table of README says of every family of the registry what the contracts do, and nothing else."""

import importlib
import inspect
from pathlib import Path

import pytest

from segregation.models.family import families
from tests.contract.found import COLUMNS, NO, NO_LAYERS, NONE, YES, Column, Found
from tests.contract.plain import CHANNELS
from tests.contract.subjects import subject
from tests.contract.table import described, in_order, into_readme, layers, read_table

ROOT = Path(__file__).parents[2]
README, PAGE = (ROOT / "README.md").read_text(), (ROOT / "docs" / "families.md").read_text()
BY_ABILITY = {ability: column for column in COLUMNS for ability in column.abilities}


def test_rows_and_columns_are_those_of_the_registry_and_the_suite():
    rows = read_table(README)
    assert list(rows) == [described(family)[0] for family in in_order()]
    for family in in_order():
        row = rows[described(family)[0]]
        assert list(row) == ["layers", *(column.title for column in COLUMNS)]
        assert row["layers"] == layers(family)
    assert table_of(PAGE) == table_of(README)


def table_of(text: str) -> list[str]:
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| family | layers |"))
    return lines[start : start + 2 + len(families())]


def test_no_cell_contradicts_what_a_family_cannot_do(family: str):
    known = next(one for one in families().values() if one.name == family)
    row, model = read_table(README)[described(known)[0]], subject(family).model
    for column in COLUMNS:
        cell, cannot = row[column.title], [known.cannot[a] for a in column.abilities if a in known.cannot]
        missing = {"heads": not model.attention_layers, "tokens": not model.attention_layers}
        missing |= dict.fromkeys(("mixers", "skip", "reset", "states", "contributions"), not model.recurrent_layers)
        if column.title == "patch":
            lacks = {"keys", "values"} if "keys" in known.cannot or not model.attention_layers else set()
            lacks |= {"recurrent"} if "state" in known.cannot or not model.recurrent_layers else set()
            lacks |= {"conv"} if "conv" in known.cannot or not model.recurrent_layers else set()
            assert cell == (", ".join(sorted(set(CHANNELS) - lacks)) if lacks else YES)
        else:
            assert cell == (NONE if missing.get(column.title) else NO if cannot else YES), column.title
        said = [line for line in PAGE.splitlines() if line.startswith(f"- **{column.title}**: ")]
        assert all(any(line.endswith(f"{reason}.") for line in said) for reason in cannot)
    assert set(known.cannot) <= set(BY_ABILITY)


def test_every_contract_is_of_one_column():
    """A contract is a test that asks for a family or its subject."""
    asked = []
    for file in Path(__file__).parent.glob("test_*.py"):
        module = importlib.import_module(f"tests.contract.{file.stem}")
        tests = [(name, test) for name, test in vars(module).items() if name.startswith("test_")]
        asked += [
            name
            for name, test in tests
            if {"family", "subject"} & set(inspect.signature(test).parameters) and module.__name__ != __name__
        ]
    assert sorted(asked) == sorted(name for column in COLUMNS for name in column.tests)


def report(name: str, *properties: tuple[str, object]) -> pytest.TestReport:
    return pytest.TestReport(
        f"tests/contract/test_x.py::{name}", ("", 0, ""), {}, "passed", None, "call", user_properties=list(properties)
    )


def test_a_cell_is_what_the_tests_asserted():
    found, one, several = Found(), Column("a", "", ("test_a", "test_b")), Column("c", "", ("test_c",))
    for name in ("test_a[kept]", "test_b[kept]", "test_b[half]", "test_c[half-keys]", "test_c[kept-keys]"):
        found.pytest_runtest_logreport(report(name))
    found.pytest_runtest_logreport(report("test_a[half]", ("refused", "it is wrong"), ("gap", ("noise", 0.5))))
    found.pytest_runtest_logreport(report("test_c[half-conv]", ("refused", "it has none")))
    found.pytest_runtest_logreport(report("test_c[kept-conv]"))
    found.pytest_runtest_logreport(report("test_a[none]", ("refused", NO_LAYERS[0])))
    assert [found.cell(name, one) for name in ("kept", "half", "none")] == [YES, NO, NONE]
    assert [found.cell(name, several) for name in ("kept", "half")] == [YES, "keys"]
    assert (found.reasons("half", one), found.reasons("none", one)) == (["it is wrong"], [])
    assert found.gaps == {"half": {"noise": 0.5}}
    with pytest.raises(KeyError, match="no test of the column 'a' passed on 'lost'"):
        found.cell("lost", one)


def test_a_table_is_put_between_its_markers():
    text = "before\n<!-- families -->\nold\n<!-- /families -->\nafter"
    assert into_readme(text, "| new |") == "before\n<!-- families -->\n| new |\n<!-- /families -->\nafter"
    with pytest.raises(ValueError, match="markers"):
        into_readme("no markers", "| new |")
