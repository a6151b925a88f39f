"""How an experiment is started from the command line, and what it prints at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from segregation.errors import refusing
from segregation.report.html import write_report
from segregation.report.tables import claims_table


def main(run: Callable[[Any], Path], options: type, description: str | None) -> None:
    """Parse the options, run, write the report and print its claims."""
    with refusing():
        finish(run(tyro.cli(options, description=description)))


def finish(folder: Path) -> None:
    """Write the report of a run folder (or a folder of runs) and print its claims."""
    claims = [claim for run in write_report(folder) for claim in run.claims]
    console = Console()
    console.print(claims_table(claims))
    console.print(f"Written: {folder / 'report.html'}, claims.json, figures/", soft_wrap=True)
