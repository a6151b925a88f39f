"""What plans cost on models of published sizes with random weights: does it fit, peak memory, seconds, ratio to plain.

``python -m benchmarks.real_sizes --out FOLDER`` builds each model of ``benchmarks.published`` on the GPU in bf16 and
generates 40 tokens after a prompt of 4,096 random tokens in several ways, one after the other in every round:

- ``plain``: transformers' own ``generate``, on modules that NNsight has never touched (the weights are shared);
- ``generate``: ``model.intervene(plan).generate``, through NNsight;
- ``runner``: ``sg.generate`` for one sample, which reads the prompt's last token on its own.

A first round, not timed, compares tokens and logits with those of ``plain``. Every model has a process of its own, and
records are appended to ``FOLDER/records.jsonl``; ``--table FOLDER`` prints them. ``--smoke`` runs tiny models of the
same families on the CPU.
"""

import argparse
import dataclasses
import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

import segregation as sg
from benchmarks.published import PUBLISHED, build, untouched, word_tokenizer
from benchmarks.real_sizes_records import Built, Compared, Failed, Result, Timed, append, read, table
from segregation.errors import ModelError
from segregation.models.checks import quick_checks
from segregation.models.provenance import versions

START = 90
"""Seconds that a process may take beside its rounds: imports, building, checks."""
FUNCTIONS = frozenset(
    {
        *("selective_scan_fn", "selective_state_update", "mamba_chunk_scan_combined"),  # mamba-ssm
        *("causal_conv1d_fn", "causal_conv1d_update"),  # causal-conv1d, or transformers' reference
        *("mamba_selective_scan", "mamba_selective_state_update", "_rnn_scan"),  # transformers' references
        *("mamba2_chunk_scan", "mamba2_selective_state_update"),
        *("mamba_scan", "rg_lru_scan"),  # segregation.models.scans
    }
)
"""Functions that do the recurrent work, one of several for each job."""


@dataclass(frozen=True)
class Way:
    """One way to generate, and the plan under which it does."""

    name: str
    by: Literal["plain", "generate", "runner"]
    plan: sg.Plan = sg.Plan()  # noqa: RUF009 (a frozen value)


_TOP_5 = sg.Plan(sg.KeepTopHeads(k=5, score="entropy", during=sg.Phase.GENERATION))
WAYS = (
    Way("plain generate", "plain"),
    Way("base", "generate"),
    Way("k = 5, generation", "generate", _TOP_5),
    Way("k = 5, all positions", "generate", sg.Plan(sg.KeepTopHeads(k=5, score="entropy", during=sg.Phase.ALL))),
    Way("full ablation", "generate", sg.Plan(sg.AblateHeads("all"))),
    Way("runner, base", "runner"),
    Way("runner, k = 5, generation", "runner", _TOP_5),
)


@dataclass(frozen=True)
class Output:
    """What was generated: new tokens, and their logits on the CPU where there are any."""

    tokens: tuple[int, ...]
    logits: Float[Tensor, "step d_vocab"] | None


def with_functions(run: Callable[[], Output]) -> tuple[Output, list[str]]:
    """What a run gives, and which of ``FUNCTIONS`` it calls, by module and name."""
    found: set[str] = set()

    def note(frame: Any, event: str, _argument: object) -> None:
        module = frame.f_globals.get("__name__")  # code that was made up as a string may have none
        if event == "call" and frame.f_code.co_name in FUNCTIONS and module is not None:
            found.add(f"{module}.{frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        output = run()
    finally:
        sys.setprofile(None)
    return output, sorted(found)


def generator(
    way: Way, plain: PreTrainedModel, model: sg.HybridModel, sample: sg.Sample, new_tokens: int
) -> Callable[..., Output]:
    """A function that generates in this way; its options go to transformers' ``generate``."""
    ids = torch.tensor([model.encode(sample)], device=model.device)
    source: Any = plain if way.by == "plain" else model.intervene(way.plan)

    def by_generate(**options: Any) -> Output:
        with torch.no_grad():
            output = source.generate(
                ids, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, **options
            )
        logits = torch.cat(output.logits).float().cpu() if output.logits else None
        return Output(tuple(output.sequences[0, ids.shape[1] :].tolist()), logits)

    def by_runner(**_options: Any) -> Output:
        (record,) = sg.generate(model, [sample], way.plan, max_new_tokens=new_tokens)
        return Output(tuple(record.tokens), None)

    return by_runner if way.by == "runner" else by_generate


def compare(plain: Output, other: Output) -> tuple[int, float | None]:
    """How many first tokens agree, and the largest difference of logits up to the first that does not.

    >>> a = Output((5, 6), torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    >>> compare(a, Output((5, 7), torch.tensor([[0.0, 1.5], [2.0, 0.25]])))
    (1, 0.5)
    """
    pairs = zip(plain.tokens, other.tokens, strict=True)
    same = next((i for i, (one, two) in enumerate(pairs) if one != two), len(plain.tokens))
    if plain.logits is None or other.logits is None:
        return same, None
    read_the_same = slice(same + 1)
    return same, float((plain.logits[read_the_same] - other.logits[read_the_same]).abs().max())


def timed(run: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds and peak memory in GB; no peak without a GPU."""
    on_gpu = torch.cuda.is_initialized()
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None


def measure(name: str, *, smoke: bool, tokens: int, new_tokens: int, repeats: int | None) -> Iterator[Result]:
    """Build one model, check it, compare every way with ``plain``, and time them all, round by round.

    Raises:
        ModelError: it does not fit, or its logits are not finite.
    """
    published = PUBLISHED[name]
    config = published.config(**{**published.fields, **(published.tiny if smoke else {})})
    start = time.perf_counter()
    module = build(config, "cpu" if smoke else "cuda")
    seconds = time.perf_counter() - start
    parts = ("attn", "experts") if "num_experts" in published.fields else ("attn",)
    implementations = {part: str(getattr(config, f"_{part}_implementation")) for part in parts}
    plain = untouched(module)
    model = sg.HybridModel(module, word_tokenizer(config), {"name": name})
    yield Built(
        model=name,
        parameters=module.num_parameters(),
        weights_gb=sum(parameter.nbytes for parameter in module.parameters()) / 1e9,
        build_seconds=seconds,
        device="a CPU" if smoke else torch.cuda.get_device_name(),
        device_gb=None if smoke else torch.cuda.mem_get_info()[1] / 1e9,
        versions=versions(),
        implementations=implementations,
        checks=[dataclasses.asdict(check) for check in quick_checks(model)],
    )
    rng = random.Random(0)
    words = " ".join(f"<{rng.randrange(8, config.vocab_size)}>" for _ in range(tokens - 1))
    sample = sg.Sample(id="random", prompt=words, target="<8>")
    runs = {way: generator(way, plain, model, sample, new_tokens) for way in WAYS}
    for result in comparisons(name, runs, len(model.encode(sample))):
        yield result
        if isinstance(result, Failed):
            runs = {way: run for way, run in runs.items() if way.name != result.way}
    yield from rounds(name, runs, published.repeats if repeats is None else repeats, published.seconds)


def comparisons(
    name: str, runs: Mapping[Way, Callable[..., Output]], prompt_tokens: int
) -> Iterator[Compared | Failed]:
    """Every way beside the first, ``plain``, which is run twice; what does not fit into memory has failed.

    Raises:
        ModelError: logits that are not finite.
    """
    plain = runs[WAYS[0]](output_logits=True)
    if plain.logits is None or not bool(plain.logits.isfinite().all()):
        raise ModelError(f"plain generate of {name} gave logits that are not finite; these random weights are no use")
    for way, run in runs.items():
        try:
            output, functions = with_functions(lambda run=run: run(output_logits=True))
        except torch.OutOfMemoryError as error:
            yield Failed(name, way.name, str(error).splitlines()[0])
            continue
        yield Compared(name, way.name, prompt_tokens, len(plain.tokens), *compare(plain, output), functions)


def rounds(name: str, runs: Mapping[Way, Callable[..., Output]], repeats: int, seconds: float) -> Iterator[Timed]:
    """Every way once in every round; a round that might not end in time is left out, but for the first."""
    start = time.perf_counter()
    for number in range(repeats):
        spent = time.perf_counter() - start
        if number and spent * (number + 1) / number > seconds:
            return
        for way, run in runs.items():
            yield Timed(name, way.name, number, *timed(run))


def run_in_its_own_process(name: str, options: argparse.Namespace) -> None:
    """Measure one model in a new process with a time limit; what goes wrong there becomes a record."""
    limit = START + 2 * PUBLISHED[name].seconds
    print(f"{name}: {PUBLISHED[name].seconds:.0f} s of rounds, at most {limit:.0f} s in all", flush=True)
    flags = [f"--tokens={options.tokens}", f"--new-tokens={options.new_tokens}", f"--out={options.out}"]
    flags += ["--smoke"] if options.smoke else []
    flags += [] if options.repeats is None else [f"--repeats={options.repeats}"]
    command = [sys.executable, "-m", "benchmarks.real_sizes", "--here", name, *flags]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "USE_HUB_KERNELS": "NO"}
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / f"{name.rpartition('/')[2]}.log"
    try:
        with log.open("w") as file:
            subprocess.run(command, env=offline, timeout=limit, stderr=file, check=True)
    except subprocess.TimeoutExpired:
        append(options.out, Failed(name, "", f"it took more than {limit:.0f} s"))
    except subprocess.CalledProcessError as error:
        last = (log.read_text().strip().splitlines() or [""])[-1]
        append(options.out, Failed(name, "", f"exit status {error.returncode}: {last[:300]}"))


def main() -> None:
    """Measure every model that was asked for and print the table, or print the table of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), help="model ids")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--new-tokens", type=int, default=40, help="tokens to generate")
    parser.add_argument("--repeats", type=int, help="timed rounds; each model has its own number")
    parser.add_argument("--out", type=Path, help="folder that records are appended to")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print what is there and measure nothing")
    parser.add_argument("--here", choices=PUBLISHED, help="measure this model in this process")
    options = parser.parse_args()
    if options.table is not None:
        print(table(read(options.table), WAYS[0].name))
        return
    if options.out is None:
        parser.error("say --out FOLDER, for the records")
    if not options.smoke and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --smoke runs tiny models on the CPU")
    if options.here is None:
        for name in options.models:
            run_in_its_own_process(name, options)
        print(table(read(options.out), WAYS[0].name))
        return
    sizes = {"tokens": options.tokens, "new_tokens": options.new_tokens, "repeats": options.repeats}
    for result in measure(options.here, smoke=options.smoke, **sizes):
        append(options.out, result)
        print(result, flush=True)


if __name__ == "__main__":
    main()
