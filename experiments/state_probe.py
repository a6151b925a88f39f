"""Can the needle be read off the recurrent state, and does it matter? Linear probes, beside a patch of the same state.

    python -m experiments.state_probe --model tiny-jamba

Probes tell which needle was read, and whether it was a needle or a decoy, from recurrent states, convolution buffers
and residuals, per layer and distance from the needle; control: shuffled labels. A probe is not a mechanism, so at the
same distances the states of a run are exchanged with those of a run with another needle; control: keys and values are.
A model with layers of one kind only is probed, and patched, in what it has.
"""

from dataclasses import dataclass, field
from pathlib import Path

from experiments.launch import main
from experiments.options import Common
from segregation.probes.interchange import exchangeable, partners
from segregation.probes.measure import (
    PROBED,
    UNTOUCHED_SETTINGS,
    interchange_records,
    interchange_settings,
    probe_records,
    probes,
    untouched_records,
)
from segregation.probes.samples import ProbeSamples
from segregation.runs.fill import fill_measurements


@dataclass(frozen=True)
class Options(Common):
    """What to run.

    Attributes:
        prompts: needles and haystacks.
        distances: where probes read, in tokens since the needle's end.
        exchanges: after how many tokens since the needle's end memories are exchanged.
    """

    prompts: ProbeSamples = field(default_factory=ProbeSamples)
    distances: tuple[int, ...] = (0, 2, 4, 8, 16, 32, 64, 128, 256)
    exchanges: tuple[int, ...] = (0, 4, 16, 64, 256)


def run(options: Options) -> Path:
    """Run what is missing; the run folder."""
    model, folder = options.start("state-probe")
    prompts = options.prompts.samples(model.tokenizer)
    probe_of = {(sample := probe.sample(prompts)).id: (probe, sample) for probe in probes(model, options.distances)}
    fill_measurements(
        folder,
        [sample for _, sample in probe_of.values()],
        lambda these: probe_records(
            model, prompts, [probe_of[sample.id] for sample in these], batch_size=options.batch_size
        ),
        settings=PROBED,
        title=f"{options.model_name}, probes",
    )
    pair_of = {own.id: (own, other) for own, other in partners(prompts)}
    owns = [own for own, _ in pair_of.values()]
    sizes = {"max_new_tokens": options.max_new_tokens, "batch_size": options.batch_size}
    fill_measurements(
        folder,
        owns,
        lambda these: untouched_records(model, [pair_of[sample.id] for sample in these], **sizes),
        settings=UNTOUCHED_SETTINGS,
        title=f"{options.model_name}, untouched",
    )
    ways = exchangeable(model)[1:]
    for distance in options.exchanges:
        fill_measurements(
            folder,
            owns,
            lambda these, at=distance: interchange_records(
                model, [pair_of[sample.id] for sample in these], at, ways, **sizes
            ),
            settings=interchange_settings(distance),
            title=f"{options.model_name}, exchanged after {distance} tokens",
        )
    return folder.path


if __name__ == "__main__":
    main(run, Options, __doc__)
