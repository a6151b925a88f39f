"""One self-contained HTML page per run folder: claims, figures, rates, sample outputs and the manifest."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from segregation import __version__
from segregation.report import compensation, dissociation, probes, routes
from segregation.report.attention import attention_figures
from segregation.report.figures import figures_of, png
from segregation.report.names import plan_name
from segregation.report.run import Run, read_runs
from segregation.report.tables import beyond_window, claims_markdown, measured, rates
from segregation.scores.claims import write_claims
from segregation.scores.outcomes import general, has_outcome, sweep_point

CAPTIONS = {
    "retrieval": "One panel per plan, one cell per context length and needle depth, coloured by the mean score of its "
    "samples. “Prefill” is every prompt position but the last; “the last prompt token” emits the first new token; "
    "“generation” is that position and the new tokens.",
    "heads_kept": "Exact retrieval when only k query heads of each attention layer act. Bars: Wilson 95% intervals "
    "over samples. Grey: the mean of the random draws, with its bootstrap 95% interval.",
    "visibility": "What attention may see (down) in which phases (across): each cell is the share of needles retrieved "
    "whole, with its Wilson 95% interval. Only attention is edited; the recurrent layers read every token. “Only the "
    "needle”: attention sees nothing else; “balanced”: and every token of it equally. “Decoy”: as many tokens of the "
    "haystack, for control.",
    "copies": "The context is read twice, so there are two needles: which of them attention cannot see (down) in which "
    "phases (across). Each cell is the share retrieved whole, with its Wilson 95% interval.",
    "benchmarks": "Accuracy on choice tasks, scored by log-likelihood, over that of the untouched model on the same "
    "questions: raw, and once the share that a guess gets right is taken off both. Whiskers: 95% intervals. Tasks that "
    "the untouched model hardly knows are left out.",
    "attention": "How much of each head's attention lies on the tokens of the needle, in one sample. Above: the mean "
    "over the positions of a phase, in percent; “if spread evenly”: what it would be if a head looked alike at every "
    "token that it sees. Below: the heads that look most, at each position that writes a token of the answer; what a "
    "head sees where it is ablated (×) goes nowhere.",
    "probes": probes.CAPTION,
    **routes.CAPTIONS,
    **dissociation.CAPTIONS,
    **compensation.CAPTIONS,
}
"""What a reader has to know to read each figure, by the first part of its name."""

EXAMPLES = 12
"""Sample outputs shown per run, at most."""


@dataclass(frozen=True)
class Example:
    """A sample output: what was asked for, and what one plan made of it."""

    plan: str
    where: str
    target: str
    text: str
    value: float


def write_report(folder: Path | str) -> list[Run]:
    """Write ``claims.json``, ``claims.md``, ``figures/*.png`` and ``report.html`` into a folder of one run or several.

    Only records and captures are read. Returns the runs, with their claims.

    Raises:
        RecordError: there is no run in the folder, or a record cannot be read.
    """
    folder = Path(folder)
    runs = read_runs(folder)
    pictures = {run.name: draw(run) for run in runs}
    claims = [claim for run in runs for claim in run.claims]
    write_claims(claims, folder / "claims.json")
    (folder / "claims.md").write_text(claims_markdown(claims) + "\n", encoding="utf-8")
    (folder / "figures").mkdir(exist_ok=True)
    for name, drawn in pictures.items():
        for figure, picture in drawn.items():
            (folder / "figures" / f"{name}-{figure}.png").write_bytes(picture)
    (folder / "report.html").write_text(page(folder.resolve().name, runs, pictures), encoding="utf-8")
    return runs


def draw(run: Run) -> dict[str, bytes]:
    """The figures of a run as PNG pictures, by name; what an experiment has a figure of its own for is drawn once."""
    own = {
        **routes.route_figures(run.records),
        **dissociation.dissociation_figures(run.outcomes),
        **compensation.compensation_figures(run.records),
        **probes.probe_figures(run.records),
    }
    figures = {**figures_of(general(run.outcomes)), **own, **attention_figures(run.path)}
    return {name: png(figure) for name, figure in figures.items()}


def page(title: str, runs: Sequence[Run], pictures: dict[str, dict[str, bytes]]) -> str:
    """The whole page; everything that models or users wrote is escaped."""
    environment = Environment(
        loader=PackageLoader("segregation.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["base64"] = lambda picture: base64.b64encode(picture).decode()
    environment.filters["measured"] = measured
    environment.filters["caption"] = lambda name: CAPTIONS[max(filter(name.startswith, CAPTIONS), key=len)]
    return environment.get_template("page.html.jinja").render(
        title=title,
        version=__version__,
        claims=[claim for run in runs for claim in run.claims],
        runs=[
            {
                "name": run.name,
                "pictures": pictures[run.name],
                "rates": rates(run.outcomes),
                "beyond_window": beyond_window(run.outcomes),
                "examples": examples(run),
                "manifest": json.dumps(run.manifest, indent=2, sort_keys=True),
                "n_records": len(run.records),
            }
            for run in runs
        ],
    )


def examples(run: Run) -> list[Example]:
    """The outputs of one sample, the middle one, under every plan but the random draws; at most ``EXAMPLES``."""
    generated = [
        (outcome, record)
        for outcome, record in zip(run.outcomes, filter(has_outcome, run.records), strict=True)
        if record.kind == "generate" and getattr(sweep_point(outcome.plan), "choice", "") != "random"
    ]
    if not generated:
        return []
    ids = list(dict.fromkeys(outcome.sample_id for outcome, _ in generated))
    chosen = ids[len(ids) // 2]
    return [
        Example(
            plan=plan_name(outcome.plan),
            where=f"{outcome.context_length} tokens, depth {outcome.depth_percent:.0f}%",
            target=record.target,
            text=record.text,
            value=outcome.value,
        )
        for outcome, record in generated
        if outcome.sample_id == chosen
    ][:EXAMPLES]
