"""Run every contract on every family, and write what works into README.md and docs/families.md.

A cell is never typed by hand: it is ``yes`` where a family's tests pass, and ``no`` where they pass by being refused
with the reason. Where a contract fails nothing is written.
"""

import sys
from pathlib import Path

import pytest

from tests.contract.found import Found

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the suite and write the tables."""
    found = Found()
    here = Path(__file__).parent.relative_to(ROOT)
    last_tables = f"--ignore={here}/test_table.py"
    if pytest.main(["-q", "-p", "no:cacheprovider", str(here), last_tables], plugins=[found]):
        print("no table is written while a contract fails", file=sys.stderr)
        return 1
    from tests.contract.table import into_readme, page, table  # not before pytest has put its type checks in place

    readme = ROOT / "README.md"
    readme.write_text(into_readme(readme.read_text(), table(found)))
    (ROOT / "docs" / "families.md").write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
