"""Put memories together from a clean and a corrupt run: does the needle come back with the KV cache, or the state?

    python -m experiments.routes --model tiny-jamba

Claims ``state-only`` (arXiv 2510.19861: no compensatory mechanism) and ``segregation-index``; control: both runs whole,
which must write their own needles. Each of keys, values, recurrent and convolution states is taken from either run, in
all 16 ways, right after the needle, right after the context, and before the last prompt token.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from experiments.launch import main
from experiments.options import Common
from segregation.models.hybrid import HybridModel
from segregation.probes.routes import BorderName, route_settings, routes
from segregation.prompts.grid import Grid
from segregation.prompts.pairs import Pair, corrupt_pairs
from segregation.prompts.sample import Sample
from segregation.runs.fill import fill_measurements
from segregation.runs.record import Record


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        grid: clean samples; its seed draws the words of the corrupt ones too.
        borders: where memories are put together.
    """

    grid: Grid = field(default_factory=lambda: Grid(lengths=(128, 256, 512), depths=(0, 25, 50, 75, 100), n_per_cell=5))
    borders: tuple[BorderName, ...] = ("needle", "question", "answer")


def measure(
    model: HybridModel, pairs: dict[str, Pair], border: BorderName, batch_size: int | None, lacking: list[Sample]
) -> Iterator[Record]:
    """The measurements of the samples that are lacking."""
    return routes(model, [pairs[sample.id] for sample in lacking], border, batch_size=batch_size)


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    model, folder = options.start("routes")
    samples = options.grid.samples(model.tokenizer)
    pairs = {pair.clean.id: pair for pair in corrupt_pairs(model.tokenizer, samples, seed=options.grid.seed)}
    for border in options.borders:
        fill_measurements(
            folder,
            samples,
            functools.partial(measure, model, pairs, border, options.batch_size),
            settings=route_settings(border),
            title=f"{options.model_name}, routes, {border}",
        )
    return folder.path


if __name__ == "__main__":
    main(run, Options, __doc__)
