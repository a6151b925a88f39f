"""Ask facts, sentiment and entailment with few heads, with none, phase by phase: what is left of general ability?

    python -m experiments.benchmarks --model tiny-jamba

Claim ``benchmarks`` of arXiv 2510.19861 (84% of MMLU with 15% of the heads). The number of heads is the one found by
``experiments.head_sparsification`` on the same model, whose run must be there, or the one given.
"""

from dataclasses import dataclass
from pathlib import Path

import segregation as sg
from experiments.launch import main
from experiments.options import Common
from segregation.errors import RecordError
from segregation.prompts.benchmarks import entailment, facts, sentiment
from segregation.runs.fill import fill_loglikelihood
from segregation.runs.store import read_records
from segregation.scores.outcomes import outcomes
from segregation.scores.verdicts import smallest_k

PHASES = (sg.Phase.PREFILL, sg.Phase.LAST, sg.Phase.ALL)


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        n: questions per task.
        k: heads kept per attention layer; left out, the smallest that keeps retrieval in the run of
            ``head_sparsification``.
    """

    n: int = 100
    k: int | None = None


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    k = found_k(options) if options.k is None else options.k
    model, folder = options.start("benchmarks")
    kept = [sg.Plan(sg.KeepTopHeads(k, during=during)) for during in (sg.Phase.GENERATION, sg.Phase.ALL)]
    ablated = [sg.Plan(sg.AblateHeads("all", during=during)) for during in PHASES]
    for task in (facts(options.n), sentiment(options.n), entailment(options.n)):
        fill_loglikelihood(
            folder,
            model,
            task,
            [sg.Plan(), *kept, *ablated],
            batch_size=options.batch_size,
            title=f"{options.model_name}, benchmarks, {task[0].metadata['task']}",
        )
    return folder.path


def found_k(options: Options) -> int:
    """The smallest k that keeps retrieval, from the records of ``head_sparsification`` on the same model.

    Raises:
        RecordError: there is no such run.
    """
    run = options.runs / f"{options.model_name}-head-sparsification"
    if not (run / "records.jsonl").is_file():
        raise RecordError(
            f"how many heads to keep is read from the run {run.name}, which is not in {str(options.runs)!r}; run "
            f"`python -m experiments.head_sparsification --model {options.model}` first, or give --k"
        )
    return smallest_k(outcomes(read_records(run)))


if __name__ == "__main__":
    main(run, Options, __doc__)
