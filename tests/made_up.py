"""Runs that no model made: records of a known outcome for every plan of the two experiments."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from segregation.interventions.draws import random_heads
from segregation.interventions.phase import Phase
from segregation.interventions.rules import AblateHeads, KeepTopHeads, Plan
from segregation.prompts.sample import Sample
from segregation.runs.record import Record
from segregation.runs.store import RunFolder
from segregation.scores.outcomes import sweep_point
from segregation.zoo.needles import CLASSIC

Right = Callable[[Plan, Sample], bool]
"""Whether the made-up model is right about a sample under a plan."""

ABLATED = Plan(AblateHeads("all", during=Phase.ALL))
PHASES = (Phase.PREFILL, Phase.LAST, Phase.DECODE, Phase.GENERATION, Phase.ALL)


def needles(
    *, lengths: Iterable[int] = (128, 512, 1024), depths: Iterable[int] = (0, 25, 50, 75, 100), readings: int = 1
):
    return [
        Sample(
            id=f"needle/{length}/{depth}/x{readings}",
            prompt="CONTEXT: ...",
            target=CLASSIC.sentence,
            metadata={"task": "needle", "context_length": length, "depth_percent": depth, "readings": readings},
        )
        for length in lengths
        for depth in depths
    ]


def asked(task: str, n: int, choices: tuple[str, ...]) -> list[Sample]:
    metadata = {"task": task, "chance": 1 / len(choices)}
    return [
        Sample(id=f"{task}/{i}", prompt="Q:", target=choices[0], choices=choices, metadata=metadata) for i in range(n)
    ]


def facts(n: int) -> list[Sample]:
    return asked("facts", n, (" one", " two", " six", " ten"))


def classic(samples: Sequence[Sample]) -> list[Sample]:
    """The same cells with the paper's needle."""
    return [
        replace(sample, id=f"classic/{sample.id}", metadata={**sample.metadata, "needle": "classic"})
        for sample in samples
    ]


def recorded(
    samples: Sequence[Sample], plans: Sequence[Plan], right: Right, *, model: str = "made-up", family: str = ""
) -> list[Record]:
    """One record per sample and plan: the needle (or the right choice) where ``right`` says so."""
    texts = {plan: {"plan": plan.to_json(), "plan_hash": plan.hash} for plan in plans}
    described = {"name": f"models/{model}", **({"family": family} if family else {})}
    records = []
    for sample, plan in itertools.product(samples, plans):
        ok = right(plan, sample)
        outcome: dict[str, object] = {"kind": "generate", "text": sample.target if ok else "eat a <b>sandwich</b>"}
        if sample.choices:
            scores = (-1.0 if ok else -3.0, *[-2.0] * (len(sample.choices) - 1))
            outcome = {"kind": "loglikelihood", "loglikelihoods": scores, "token_counts": (1,) * len(scores)}
        records.append(Record.of(sample, prompt_tokens=9, model=described, **texts[plan], **outcome))
    return records


def lone_target(sample: Sample, plan: Plan | None = None) -> Record:
    """A record of the target's log-probability, with no choices beside it."""
    plan = plan or Plan()
    outcome: dict[str, object] = {"kind": "loglikelihood", "loglikelihoods": (-9.0,), "token_counts": (12,)}
    named = {"plan": plan.to_json(), "plan_hash": plan.hash}
    return Record.of(sample, prompt_tokens=9, model={"name": "models/made-up"}, **named, **outcome)


def ablation_plans() -> list[Plan]:
    return [Plan(), *(Plan(AblateHeads("all", during=during)) for during in PHASES)]


def sweep_plans(n_heads: int = 8, draws: int = 20, during: Phase = Phase.GENERATION) -> list[Plan]:
    chosen = [Plan(KeepTopHeads(k, score, during=during)) for score in ("entropy", "l2") for k in range(n_heads + 1)]
    drawn = [plan for k in range(1, n_heads) for plan in random_heads((2, 5), n_heads, k, draws, during=during)]
    return [Plan(), *chosen, *drawn]


def by_chance(share: Callable[[Plan], float]) -> Right:
    """Right on a share of the samples that depends on the plan alone; the same samples in every run."""

    def right(plan: Plan, sample: Sample) -> bool:
        return random.Random(f"{sample.id}/{plan.hash}").random() < share(plan)

    return right


def write_run(path: Path, records: Sequence[Record]) -> Path:
    """A run folder with these records."""
    folder = RunFolder(path, {"model": {"name": "made-up"}, "options": {"note": "<script>alert(1)</script>"}})
    folder.append(*records)
    return folder.path


def ablation_records(right: Right, *, cells: int = 75, with_facts: bool = True) -> list[Record]:
    """What ``experiments.attention_ablation`` leaves behind, with ``cells`` samples for each number of readings."""
    records = []
    for readings in (1, 2):
        samples = needles(lengths=range(100, 100 + cells // 5), readings=readings)
        records += recorded(samples, ablation_plans(), right)
    return records + (recorded(facts(60), [Plan(), ABLATED], right) if with_facts else [])


def sweep_records(right: Right) -> list[Record]:
    """What ``experiments.head_sparsification`` leaves behind for 8 heads, in generation."""
    samples = needles(lengths=range(100, 115))
    drawn = [plan for plan in sweep_plans() if getattr(sweep_point(plan), "choice", "") == "random"]
    chosen = [plan for plan in sweep_plans() if plan not in drawn]
    by_entropy = [Plan(KeepTopHeads(k, during=Phase.GENERATION)) for k in range(9)]
    return [
        *recorded(samples, chosen, right),
        *recorded(samples[::15], drawn, right),
        *recorded(facts(60), [Plan(), ABLATED, *by_entropy], right),
    ]


def save_random_model(folder: Path, family: str = "recurrentgemma") -> Path:
    """A tiny random hybrid that reads bytes, as ``save_pretrained`` writes it."""
    from tests.conftest import byte_tokenizer, random_module

    random_module(family, attention_window_size=64).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
