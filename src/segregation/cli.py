"""The ``segregation`` command: list and check models, run one needle grid under a plan, report on a run."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segregation.errors import PlanError, refusing
from segregation.interventions.head_rules import HeadScore
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.prompts.grid import Grid

FAILED_CHECK = 1
"""Exit code for a model that fails a check of which more follows than a report."""

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Models:
    """List the models that come with the package."""

    def __call__(self) -> int:
        """Print one row per bundled model."""
        from segregation.models.source import WEIGHTS, bundled_models

        title = "Bundled models (others open by folder or by hub id OWNER/NAME)"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))  # 80 columns hold it
        for column in ("name", "family", "layers", "heads", "width", "size"):
            table.add_column(column, no_wrap=True)
        for name in bundled_models():
            config = json.loads((WEIGHTS / name / "config.json").read_text(encoding="utf-8"))
            size = sum(path.stat().st_size for path in (WEIGHTS / name).iterdir()) / 1e6
            sizes = (str(config[key]) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
            table.add_row(name, config["model_type"], *sizes, f"{size:.1f} MB")
        Console().print(table)
        return 0


@dataclass(frozen=True)
class Check:
    """Check whether a model can be believed here: edits act, nothing leaks, batches equal singles.

    The exit code is 1 if a check fails that refuses the model or switches something off, else 0.

    Attributes:
        model: bundled name, folder or hub id.
        json: print the checks as JSON.
        dtype: of the weights in memory; tolerances follow it.
        device: where the model goes, "cpu", "cuda" or "auto".
        attn_implementation: what attention runs on.
        quantization: how weights are stored; left out, as they are.
        revision: branch, tag or commit of a hub model.
    """

    model: Positional[str]
    json: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    attn_implementation: Literal["sdpa", "eager", "segregation"] = "sdpa"
    quantization: Literal["bnb-int8", "bnb-nf4", "torchao-int8"] | None = None
    revision: str | None = None

    def __call__(self) -> int:
        """Print every check, what is switched off, and what failed or was not done, with the reason."""
        import torch

        from segregation.models import checks
        from segregation.models.load import load_model

        model = load_model(
            self.model,
            dtype=getattr(torch, self.dtype),
            device_map=self.device,
            attn_implementation=self.attn_implementation,
            quantization=self.quantization,
            revision=self.revision,
            self_checks=False,
        )
        summary = checks.summarise(model, checks.run_checks(model))
        if self.json:
            print(json.dumps(summary, indent=2))
        else:
            self._print(summary)
        return FAILED_CHECK if summary["refused"] or summary["switched_off"] else 0

    def _print(self, summary: dict[str, Any]) -> None:
        from segregation.models.checks import CONSEQUENCES, MORE_THAN

        console = Console(soft_wrap=False)
        where = f"{summary['family']}, {summary['dtype']} on {summary['device']}, {summary['attn_implementation']}"
        table = Table(title=f"Checks of {escape(self.model)} ({where})", title_justify="left", box=None)
        table.padding = (0, 1, 0, 0)  # 80 columns hold it
        for column in ("check", "outcome", "measured", "limit", "if it fails"):
            table.add_column(column, no_wrap=True, justify="right" if column in ("measured", "limit") else "left")
        for check in summary["checks"]:
            colour = {"pass": "green", "fail": "bold red", "not done": "dim"}[check["outcome"]]
            measured = "-" if check["measured"] is None else f"{check['measured']:.2e}"
            limit = f"{check['tolerance']:.0e}" if check["tolerance"] else "0"
            limit = f"{'>' if check['name'] in MORE_THAN else '≤'} {limit}"
            outcome = f"[{colour}]{check['outcome']}[/]"
            table.add_row(escape(check["name"]), outcome, measured, limit, CONSEQUENCES[check["consequence"]])
        console.print(table)
        for check in summary["checks"]:
            if check["note"]:
                console.print(f"- {check['name']} ({check['outcome']}): {check['note']}", markup=False, highlight=False)
        counts = Counter(check["outcome"] for check in summary["checks"])
        console.print(", ".join(f"{n} {outcome}" for outcome, n in counts.items()), f"in {summary['seconds']:.1f} s")
        console.print("Switched off:", ", ".join(summary["switched_off"]) or "nothing", highlight=False)
        if summary["refused"]:
            console.print("[bold red]The model is refused:[/] no number from it can be believed here")


@dataclass(frozen=True)
class Niah:
    """Run one needle grid on one model, untouched and under a plan.

    Attributes:
        model: bundled name, folder or hub id.
        plan: a JSON file with a plan (what ``Plan.to_json`` writes); takes the place of the four flags below.
        ablate_heads: ablate every attention head.
        keep_top_heads: keep this many heads of each attention layer.
        score: how heads are ranked for keep-top-heads; "entropy" if left out.
        during: the phases the flags act in: PREFILL, LAST, DECODE, GENERATION, ALL, or several joined by "|"; ALL if
            left out.
        grid: the samples.
        max_new_tokens: new tokens per sample.
        batch_size: rows decoded together.
        device: where the model goes, "cpu" or "cuda".
        runs: the folder that run folders go to.
        run: name of the run folder.
        resume: go on with the run of that name.
    """

    model: Positional[str]
    plan: Path | None = None
    ablate_heads: bool = False
    keep_top_heads: int | None = None
    score: HeadScore | None = None
    during: str | None = None
    grid: Annotated[Grid, tyro.conf.arg(name="")] = field(default_factory=Grid)
    max_new_tokens: int = 40
    batch_size: int | None = None
    device: str = "cpu"
    runs: Path = Path("runs")
    run: str = "niah"
    resume: bool = False

    def __call__(self) -> int:
        """Run what is missing, write the report and print the rates."""
        plan = self._plan()
        from segregation.models.load import load_model
        from segregation.report.html import write_report
        from segregation.report.tables import rates_table
        from segregation.runs.fill import fill_generate, open_run
        from segregation.runs.store import run_path

        run_path(self.runs, self.run)  # a name that is no folder's is refused before a model is read or samples made
        model = load_model(self.model, device_map=self.device)
        assert model.tokenizer is not None
        model.intervene(plan)  # refuses what is impossible on this model before a folder is made
        samples = self.grid.samples(model.tokenizer)
        chosen = _Chosen(json.loads(plan.to_json()), self.grid, self.max_new_tokens)
        folder = open_run(self.runs, self.run, model, chosen, resume=self.resume)
        fill_generate(
            folder,
            model,
            samples,
            [Plan(), plan],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            title=self.run,
        )
        console = Console()
        for run in write_report(folder.path):
            console.print(rates_table(run.outcomes))
        console.print(f"Written: {folder.path / 'report.html'}", soft_wrap=True, markup=False)
        return 0

    def _plan(self) -> Plan:
        during = Phase.ALL if self.during is None else Phase.parse(self.during)
        flags = []
        if self.ablate_heads:
            flags.append(AblateHeads("all", during=during))
        if self.keep_top_heads is not None:
            flags.append(KeepTopHeads(self.keep_top_heads, self.score or "entropy", during=during))
        if flags and self.plan is not None:
            raise PlanError("a plan comes from --plan or from flags, not from both; leave one of them out")
        if self.during is not None and not flags:
            raise PlanError(
                f"--during says when --ablate-heads or --keep-top-heads acts; got --during {self.during!r} and neither "
                "of them. Add one or leave --during out (a plan of a file names its own phases)"
            )
        if self.score is not None and self.keep_top_heads is None:
            raise PlanError(
                f"--score says which heads --keep-top-heads keeps; got --score {self.score!r} without it. "
                "Add --keep-top-heads K or leave --score out (a plan of a file names its own score)"
            )
        return Plan(*flags) if self.plan is None else Plan.from_file(self.plan)


@dataclass(frozen=True)
class _Chosen:
    """What the manifest of a ``niah`` run holds: the plan itself, however it was given, and the samples."""

    plan: dict[str, Any]
    grid: Grid
    max_new_tokens: int


@dataclass(frozen=True)
class Report:
    """Write claims, figures and report.html of a run folder (or a folder of runs) from its records.

    Attributes:
        folder: the run folder.
    """

    folder: Positional[Path]

    def __call__(self) -> int:
        """Write the report, print the claims and the rates."""
        from segregation.report.html import write_report
        from segregation.report.tables import claims_table, rates_table

        runs, console = write_report(self.folder), Console()
        if claims := [claim for run in runs for claim in run.claims]:
            console.print(claims_table(claims))
        for run in runs:
            console.print(run.name, style="bold", markup=False)
            console.print(rates_table(run.outcomes))
        console.print(f"Written: {self.folder / 'report.html'}", soft_wrap=True, markup=False)
        return 0


COMMANDS: dict[str, Any] = {"models": Models, "check": Check, "niah": Niah, "report": Report}


def main(args: list[str] | None = None) -> None:
    """The entry point of the ``segregation`` command."""
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="segregation", description=__doc__, args=args)
    with refusing():
        raise SystemExit(command())
