"""Figures of which heads look at the needle, phase by phase and while the answer is written, from captures alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

from segregation.errors import RecordError
from segregation.interventions.rules import Plan
from segregation.report.canvas import blank
from segregation.report.names import plan_name
from segregation.runs.capture_store import Captured, captures, has_captures, read_capture
from segregation.runs.record import Record

PLANS = 4
"""Plans that the figures of a run show, at most."""
TOP = 6
"""Heads that are followed through the answer."""

_PHASES = ("prefill, after the needle", "last prompt token", "new tokens")
_PREFILL, _LAST, _DECODE = range(3)
_LABELS = 60
"""Tokens of an answer that are named, at most; of a longer one, every second or third is."""


@dataclass(frozen=True, eq=False)
class Gaze:
    """How much of each head's attention lies on the needle, at the positions that were captured of a row.

    Attributes:
        heads: (layer, head) pairs, in order.
        weights: per head and position, the attention on all tokens of the needle, 0 to 1.
        even: per position, what that would be if attention were the same on every token that it sees.
        acts: per head and position, whether the head acts; where that was not captured, it is taken to.
        positions: which positions these are; of the prefill, those after the needle alone.
        phases: per position, 0 prefill, 1 last prompt token, 2 new tokens.
    """

    heads: tuple[tuple[int, int], ...]
    weights: np.ndarray
    even: np.ndarray
    acts: np.ndarray
    positions: np.ndarray
    phases: np.ndarray


def attention_figures(folder: Path | str) -> dict[str, Figure]:
    """The figures of a run folder's captures, if it has any that can be drawn: one sample, under each plan.

    The sample is the middle one of those with a needle whose patterns were captured.

    Raises:
        RecordError: an index, a record or a file that cannot be read.
    """
    if not has_captures(folder):
        return {}
    able = [(record, captured) for record, captured in captures(folder) if not _lacks(captured)]
    ids = list(dict.fromkeys(record.sample_id for record, _ in able))
    rows = [row for row in able if row[0].sample_id == ids[len(ids) // 2]][:PLANS]
    gazes = [(*row, gaze_of(folder, row[1])) for row in rows]
    return {f"attention{i}": _draw(*row) for i, row in enumerate(gazes, start=1) if row[-1].positions.size}


def attention_figure(folder: Path | str, key: str) -> Figure:
    """Mean attention of each head on the needle, one panel per phase, and of the best heads at every new token.

    Raises:
        RecordError: no such capture, or one without patterns, needle or a position after it.
    """
    found = {record.key: (record, captured) for record, captured in captures(folder)}
    if key not in found:
        raise RecordError(
            f"{folder} has no capture under the key {key!r:.200}; captures(folder) gives the records it has"
        )
    record, captured = found[key]
    gaze = gaze_of(folder, captured)
    if not gaze.positions.size:
        raise RecordError(f"no figure can be drawn of {key!r:.200}: no position after the needle was captured")
    return _draw(record, captured, gaze)


def _draw(record: Record, captured: Captured, gaze: Gaze) -> Figure:
    shown = [phase for phase in range(len(_PHASES)) if (gaze.phases == phase).any()]
    steps = gaze.phases >= _LAST
    layers = sorted({layer for layer, _ in gaze.heads})
    heights = [0.9 + 0.34 * len(layers), 1.1 + 0.24 * min(TOP, len(gaze.heads))] if steps.any() else [1.0]
    figure = blank(max(7.2, 1.2 + 2.9 * len(shown)), 2.2 + sum(heights))
    grid = figure.add_gridspec(len(heights), len(shown), height_ratios=heights)
    axes = [figure.add_subplot(grid[0, column]) for column in range(len(shown))]
    image = None
    for axis, phase in zip(axes, shown, strict=True):
        image = _map(axis, gaze, phase, layers)
    axes[0].set_ylabel("attention layer", fontsize=9)
    if steps.any():
        strip = figure.add_subplot(grid[1, :])
        _strip(strip, gaze, record, captured)
        axes.append(strip)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
        bar.set_label("share of a head's attention that is on the needle", fontsize=9)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        bar.ax.tick_params(labelsize=8)
    model = PurePath(str(record.model.get("name", "unnamed"))).name
    figure.suptitle(f"{model}: which heads look at the needle", fontsize=12, fontweight="bold")
    figure.supxlabel(_about(record, captured), fontsize=8)
    return figure


def gaze_of(folder: Path | str, captured: Captured) -> Gaze:
    """What the heads of a row look at; of the prefill, only the positions after the needle (its first occurrence).

    Raises:
        RecordError: there are no patterns or no needle, or the file of the capture cannot be read.
    """
    if problem := _lacks(captured):
        raise RecordError(f"no figure can be drawn of {captured.key!r:.200}: {problem}")
    tensors = read_capture(folder, captured.key)
    positions, phases = tensors["positions"].numpy(), tensors["phases"].numpy()
    occurrences = captured.spans["needle"]
    needle = [token for tokens in occurrences for token in tokens if token < len(tensors["tokens"])]
    heads, weights, even, acts = [], [], [], []
    after = (phases != _PREFILL) | (positions > max(occurrences[0]))
    for layer, own in captured.heads.items():
        pattern = tensors[f"pattern.layer{layer}"].numpy()[:, after]
        heads += [(layer, head) for head in own]
        weights.append(pattern[..., needle].sum(-1))
        even.append((pattern[..., needle] > 0).sum(-1) / np.maximum(1, (pattern > 0).sum(-1)))
        kept = tensors.get(f"kept.layer{layer}")
        acts.append(np.ones(weights[-1].shape, dtype=bool) if kept is None else kept.numpy()[after].T)
    return Gaze(
        tuple(heads),
        np.concatenate(weights),
        np.concatenate(even).mean(0),
        np.concatenate(acts),
        positions[after],
        phases[after],
    )


def _lacks(captured: Captured) -> str:
    if not captured.spans.get("needle"):
        return 'its sample has no span "needle"'
    if not any(name.startswith("pattern.") for name in captured.tensors):
        return 'no patterns were captured; ask for them with CaptureRequest(("pattern",))'
    return ""


def _map(axis: Axes, gaze: Gaze, phase: int, layers: Sequence[int]) -> AxesImage:
    """Mean attention on the needle of every captured head (across) of every layer (down) in a phase."""
    here = gaze.phases == phase
    columns = sorted({head for _, head in gaze.heads})
    values = np.full((len(layers), len(columns)), np.nan)
    for (layer, head), weight in zip(gaze.heads, gaze.weights[:, here].mean(1), strict=True):
        values[layers.index(layer), columns.index(head)] = weight
    image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
    if len(columns) <= 12:
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < 0.5 else "black"
                axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    every = -(-len(columns) // 12)
    axis.set_xticks(range(0, len(columns), every), [str(head) for head in columns[::every]], fontsize=8)
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    axis.set_xlabel("head", fontsize=9)
    n = int(here.sum())
    where = "1 position" if n == 1 else f"mean of {n} positions"
    axis.set_title(f"{_PHASES[phase]}\n{where}; {gaze.even[here].mean():.0%} if spread evenly", fontsize=9)
    return image


def _strip(axis: Axes, gaze: Gaze, record: Record, captured: Captured) -> None:
    """Attention on the needle of the heads that look most, at the position that writes each new token."""
    steps = np.flatnonzero(gaze.phases >= _LAST)
    best = np.argsort(-gaze.weights[:, steps].mean(1), kind="stable")[:TOP]
    values, acts = gaze.weights[best][:, steps], gaze.acts[best][:, steps]
    axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
    for y, x in zip(*np.nonzero(~acts), strict=True):
        axis.plot(x, y, marker="x", markersize=4, color="white" if values[y, x] < 0.5 else "black")
    axis.set_yticks(range(len(best)), ["layer {}, head {}".format(*gaze.heads[i]) for i in best], fontsize=8)
    texts = [captured.new_tokens[position - record.prompt_tokens + 1] for position in gaze.positions[steps].tolist()]
    written = [repr(text)[1:-1].strip() or "␣" for text in texts]
    every = -(-len(written) // _LABELS)
    axis.set_xticks(range(0, len(written), every), written[::every], rotation=90, fontsize=7)
    axis.set_xlabel("new token written at that position", fontsize=9)
    ablated = " (×: ablated there)" if not acts.all() else ""
    axis.set_title(f"the {len(best)} heads that look at it most while the answer is written{ablated}", fontsize=9)


def _about(record: Record, captured: Captured) -> str:
    plan = Plan.from_json(record.plan)
    tokens = sum(map(len, captured.spans["needle"]))
    depth = record.metadata.get("depth_percent")
    return "; ".join(
        [
            plan_name(plan) if plan.rules else "untouched model",
            f"one prompt of {record.prompt_tokens} tokens",
            f"the needle has {tokens} of them" + ("" if depth is None else f", at depth {depth}%"),
        ]
    )
