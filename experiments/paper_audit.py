"""Each artefact of the code of arXiv 2510.19861, carried out its way and ours on the same samples: what does it change?

    python -m experiments.paper_audit --model tiny-jamba

Writes ``audit.json`` and ``audit.md`` into the run folder. The artefacts: nominal against measured depth, ``LAST``
counted as prefill or as generation, prefill rows before the needle edited too, rows that are not renormalised,
"balanced" summed over rows, only the first copy of the needle hidden, rules without effect once the needle left the
window, and ties of the entropy in bf16.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
import tyro
from rich.console import Console
from rich.markdown import Markdown

import segregation as sg
from experiments.options import Common
from segregation.cli import refusing
from segregation.errors import SampleError
from segregation.interventions.apply import head_scores
from segregation.interventions.heads import keep_top, tied
from segregation.prompts.grid import Grid
from segregation.report.audit import audit_markdown
from segregation.report.html import write_report
from segregation.runs.fill import fill_generate, fill_loglikelihood, open_run
from segregation.runs.record import Record
from segregation.runs.store import RunFolder, read_records
from segregation.scores.audit import Finding, retrieval_finding, target_finding, with_plan, write_findings
from segregation.scores.statistics import bootstrap_mean, wilson

PREFILL, LAST, DECODE = sg.Phase.PREFILL, sg.Phase.LAST, sg.Phase.DECODE


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        grid: the samples.
        twice: samples whose context is read twice.
        far: samples whose needle has left the attention window when it is asked for.
        k: heads kept per attention layer where the entropy decides.
    """

    grid: Grid = field(default_factory=lambda: Grid(lengths=(128, 256)))
    twice: Grid = field(default_factory=lambda: Grid(lengths=(96, 192), readings=2))
    far: Grid = field(default_factory=lambda: Grid(lengths=(1500,), depths=(0, 2, 4, 6, 8)))
    k: int = 3


@dataclass(frozen=True)
class Pair:
    """One artefact as two plans on the same samples.

    Attributes:
        artefact: its short name.
        theirs: the paper's way, in words, and as a plan.
        ours: ours.
    """

    artefact: str
    theirs: tuple[str, sg.Plan]
    ours: tuple[str, sg.Plan]


def ablated(during: sg.Phase) -> sg.Plan:
    """Every head ablated."""
    return sg.Plan(sg.AblateHeads("all", during=during))


PAIRS = (
    Pair(
        "LAST: what ablation in generation means",
        ("RecurrentGemma's code: LAST and DECODE", ablated(LAST | DECODE)),
        ("Jamba's code: DECODE", ablated(DECODE)),
    ),
    Pair(
        "LAST: what ablation in prefill means",
        ("Jamba's code: PREFILL and LAST", ablated(PREFILL | LAST)),
        ("RecurrentGemma's code: PREFILL", ablated(PREFILL)),
    ),
    Pair(
        "rows before the needle",
        ("edited too", sg.Plan(sg.OnlyTokens("needle", during=PREFILL, causal=False))),
        ("left alone", sg.Plan(sg.OnlyTokens("needle", during=PREFILL))),
    ),
    Pair(
        "no renormalisation, only the needle seen",
        ("weights as they were", sg.Plan(sg.OnlyTokens("needle", during=LAST | DECODE, renormalize=False))),
        ("rows sum to 1", sg.Plan(sg.OnlyTokens("needle", during=LAST | DECODE))),
    ),
    Pair(
        "no renormalisation, needle hidden in prefill",
        ("weights as they were", sg.Plan(sg.HideTokens("needle", during=PREFILL, renormalize=False))),
        ("rows sum to 1", sg.Plan(sg.HideTokens("needle", during=PREFILL))),
    ),
    Pair(
        "balanced in prefill",
        (
            "each row gets the sum of all",
            sg.Plan(sg.BalanceTokens("needle", during=PREFILL, renormalize=False, causal=False, summed_over="prefill")),
        ),
        ("each row its own", sg.Plan(sg.BalanceTokens("needle", during=PREFILL, renormalize=False, causal=False))),
    ),
)
COPIES = Pair(
    "first copy only, read twice",
    ("first copy hidden", sg.Plan(sg.HideTokens("needle", during=LAST | DECODE, occurrence=0))),
    ("every copy hidden", sg.Plan(sg.HideTokens("needle", during=LAST | DECODE))),
)
BEYOND = sg.Plan(sg.OnlyTokens("needle", during=LAST | DECODE))


def run(options: Options) -> Path:
    """Run what is missing, and write the audit; the run folder."""
    model, folder = options.start("paper-audit")
    samples, twice = options.grid.samples(model.tokenizer), options.twice.samples(model.tokenizer)
    far = options.far.samples(model.tokenizer) if model.window else []
    plans = [plan for pair in PAIRS for plan in (pair.theirs[1], pair.ours[1])]
    _fill(options, model, folder, "artefacts", samples, [sg.Plan(), *plans])
    _fill(options, model, folder, "copies", twice, [sg.Plan(), COPIES.theirs[1], COPIES.ours[1]])
    _fill(options, model, folder, "window", far, [sg.Plan(), BEYOND])
    records = read_records(folder.path)
    found = [
        *depth_findings(options, model),
        *(finding for pair in PAIRS for finding in compared(options, records, pair, samples)),
        *compared(options, records, COPIES, twice),
        window_finding(options, records, far),
        *tie_findings(options),
    ]
    write_findings(found, folder.path / "audit.json")
    (folder.path / "audit.md").write_text(audit_markdown(found) + "\n", encoding="utf-8")
    return folder.path


def _fill(
    options: Options,
    model: sg.HybridModel,
    folder: RunFolder,
    what: str,
    samples: Sequence[sg.Sample],
    plans: Sequence[sg.Plan],
) -> None:
    title = f"{options.model_name}, audit, {what}"
    size = {"batch_size": options.batch_size}
    fill_generate(folder, model, samples, plans, max_new_tokens=options.max_new_tokens, title=title, **size)
    fill_loglikelihood(folder, model, samples, plans, title=f"{title}, ln p", **size)


def compared(options: Options, records: Sequence[Record], pair: Pair, samples: Sequence[sg.Sample]) -> list[Finding]:
    """Retrieval, and the log-probability of the needle, under both plans of a pair."""
    ids = {sample.id for sample in samples}

    def of(kind: str, way: tuple[str, sg.Plan]) -> tuple[str, list[Record]]:
        return way[0], with_plan(records, way[1], kind, ids)

    name = options.model_name
    return [
        retrieval_finding(pair.artefact, name, of("generate", pair.theirs), of("generate", pair.ours)),
        target_finding(pair.artefact, name, of("loglikelihood", pair.theirs), of("loglikelihood", pair.ours)),
    ]


def depth_findings(options: Options, model: sg.HybridModel) -> Iterator[Finding]:
    """How far the depths of the shortest column of the paper's grid are from the nominal ones, and how many."""
    theirs, ours = "200 of 250 tokens kept free", "the whole context is haystack and needle"
    what = ("nominal depth, 250 tokens", options.model_name, "|nominal - measured depth| (percent)", theirs, ours)
    off, distinct = [], []
    for preset in ("paper", None):
        try:
            grid = sg.needle_grid(model.tokenizer, (sg.PAPER_LENGTHS[0],), sg.PAPER_DEPTHS, preset=preset)
        except SampleError as error:
            yield Finding(*what, None, None, f"does not arise: {error}")
            return
        depths = [(float(s.metadata["depth_percent"] or 0), float(s.metadata["measured_depth"] or 0)) for s in grid]
        off.append(bootstrap_mean([abs(nominal - measured) for nominal, measured in depths]))
        distinct.append(len({round(measured, 6) for _, measured in depths}))
    note = f"distinct depths of {len(sg.PAPER_DEPTHS)}: {distinct[0]} their way, {distinct[1]} ours"
    yield Finding(*what, off[0], off[1], note)


def window_finding(options: Options, records: Sequence[Record], far: Sequence[sg.Sample]) -> Finding:
    """In how many samples a rule about the needle changed nothing, and in how many the record says why."""
    what = ("beyond the window", options.model_name, "samples (share)")
    labels = ("the rule changed no token", "the record says that nothing was in reach")
    if not far:
        return Finding(*what, *labels, None, None, "does not arise: this model's attention has no window")
    ids = {sample.id for sample in far}
    made = with_plan(records, BEYOND, "generate", ids)
    base = {record.sample_id: record.tokens for record in with_plan(records, sg.Plan(), "generate", ids)}
    silent = sum(record.tokens == base[record.sample_id] for record in made)
    reported = sum("needle" in record.beyond_window for record in made)
    note = "their code leaves no trace of it"
    return Finding(*what, *labels, wilson(silent, len(made)), wilson(reported, len(made)), note)


def tie_findings(options: Options) -> Iterator[Finding]:
    """How often the entropy of the k-th head ties with the next one's in bf16, and what retrieval that costs."""
    coarse = sg.load_model(options.model, device_map=options.device, dtype=torch.bfloat16)
    samples = options.grid.samples(coarse.tokenizer)
    shares: dict[str, list[float]] = {"ties": [], "fp32 ties": [], "other heads": []}
    for sample in samples:
        for layer in coarse.attention_layers:
            with torch.no_grad(), coarse.trace(sample):
                call = coarse.attention_call(layer).save()
            last = call.query.shape[2]
            paper, exact = (head_scores(call, score, last // 2, last) for score in ("paper_entropy", "entropy"))
            shares["ties"].append(tied(paper, options.k).float().mean().item())
            shares["fp32 ties"].append(tied(exact, options.k).float().mean().item())
            differ = (keep_top(paper, options.k) != keep_top(exact, options.k)).any(1)
            shares["other heads"].append(differ.float().mean().item())
    theirs, ours = f"log2 in bf16, k = {options.k}", f"ln in fp32, k = {options.k}"
    note = f"{fmean(shares['other heads']):.0%} of the positions keep other heads"
    at = (bootstrap_mean(shares["ties"]), bootstrap_mean(shares["fp32 ties"]))
    yield Finding(
        "entropy ties in bf16", options.model_name, "positions decided by a tie (share)", theirs, ours, *at, note
    )
    name = f"{options.model_name}-paper-audit-bf16"
    folder = open_run(options.runs, name, coarse, replace(options), resume=options.resume)
    ways = [sg.Plan(sg.KeepTopHeads(options.k, score, during=LAST | DECODE)) for score in ("paper_entropy", "entropy")]
    fill_generate(folder, coarse, samples, ways, max_new_tokens=options.max_new_tokens, title=name)
    made, ids = read_records(folder.path), {sample.id for sample in samples}
    first, second = (with_plan(made, way, "generate", ids) for way in ways)
    yield retrieval_finding("entropy ties in bf16", options.model_name, (theirs, first), (ours, second))


def main() -> None:
    """Parse the options, run, write the report and print the audit."""
    with refusing():
        folder = run(tyro.cli(Options, description=__doc__))
        write_report(folder)
    Console().print(Markdown((folder / "audit.md").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
