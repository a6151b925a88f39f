"""The figure of what linear probes tell, by layer and distance, with the patch of the same states beside it."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from segregation.report.canvas import blank
from segregation.runs.record import Record
from segregation.scores.probes import PatchRow, ProbeRow, patch_rows, probe_rows

CAPTION = (
    "Left: how often a linear probe tells, from one layer and some tokens after the needle, which of the needles was "
    "read (above), or whether it was the needle that the question asks for or the same sentence about something else "
    "(below). Every probe is tested on haystacks that it was not fitted to, and below on other words of the needle too "
    "(the subject asked for stays the same). Bars: Wilson 95% intervals. Grey: the same probes fitted to shuffled "
    "labels, lowest to highest layer. Right: does it matter? "
    "At the same distance the run goes on with the recurrent and convolution states, or with the keys and values, of a "
    "run that read another needle in the same haystack; above, how often it then answers with the other run's needle; "
    "below, how the log-probability of both needles changes (bootstrap 95% intervals). What a probe can read is there; "
    "only what changes the answer when it is exchanged is used."
)

_FEATURES = {
    "recurrent": "recurrent state",
    "conv": "convolution buffer",
    "residual": "residual (layer output)",
}
_TARGETS = {"identity": "which needle was it?", "presence": "needle or decoy?"}
_WAYS = {
    "states": ("#0072B2", "o", "states exchanged"),
    "keys_values": ("#D55E00", "s", "keys and values exchanged"),
    "nothing": ("#555555", "", "nothing exchanged"),
}


def probe_figures(records: Iterable[Record]) -> dict[str, Figure]:
    """The figure of each model whose records have probes or exchanges, by file name without ending."""
    records = list(records)
    told, patched = probe_rows(records), patch_rows(records)
    models = list(dict.fromkeys(row.model for row in [*told, *patched]))
    return {
        f"probes{f'_{model}' if len(models) > 1 else ''}": probe_figure(
            [row for row in told if row.model == model], [row for row in patched if row.model == model]
        )
        for model in models
    }


def probe_figure(told: Sequence[ProbeRow], patched: Sequence[PatchRow]) -> Figure:
    """Accuracy against distance, a panel for each feature and target, a line for each layer; beside them the patch."""
    features = [feature for feature in _FEATURES if any(row.feature == feature for row in told)]
    targets = [target for target in _TARGETS if any(row.target == target for row in told)]
    distances = sorted({row.distance for row in told} | {row.distance for row in patched if row.distance is not None})
    layers = sorted({row.layer for row in told})
    n_columns, n_rows = len(features) + bool(patched), 2 if patched else len(targets)
    figure = blank(1.4 + 3.5 * n_columns, 1.5 + 3.0 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    colours = _colours(layers)
    for y, target in enumerate(targets):
        for x, feature in enumerate(features):
            rows = [row for row in told if (row.feature, row.target) == (feature, target)]
            _probes(axes[y, x], rows, distances, colours)
            axes[y, x].set_title(f"{_FEATURES[feature]}\n{_TARGETS[target]}", fontsize=9)
        axes[y, 0].set_ylabel("accuracy on held-out haystacks", fontsize=9)
    for axis in axes[len(targets) :, : len(features)].ravel():
        axis.set_visible(False)
    if patched:
        _answers(axes[0, -1], patched, distances)
        _changes(axes[1, -1], patched, distances)
    for axis in axes.ravel():
        axis.set_xticks(range(len(distances)), [str(distance) for distance in distances], fontsize=8)
        axis.set_xlim(-0.4, len(distances) - 0.6)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_xlabel("tokens since the needle's end", fontsize=9)
    if features:
        _layer_bar(figure, axes[:, : len(features)], layers, colours)
    model = (told or patched)[0].model
    figure.suptitle(f"{model}: can the needle be read, and is it used?", fontsize=12, fontweight="bold")
    return figure


def _probes(
    axis: Axes, rows: Sequence[ProbeRow], distances: Sequence[int], colours: dict[int, tuple[float, ...]]
) -> None:
    chance = rows[0].chance
    shuffled = {at: [row.shuffled.value for row in rows if row.distance == at] for at in distances}
    at = [x for x, distance in enumerate(distances) if shuffled[distance]]
    low, high = ([end(shuffled[distances[x]]) for x in at] for end in (min, max))
    axis.fill_between(at, low, high, color="#999999", alpha=0.5, linewidth=0, label="shuffled labels")
    axis.axhline(chance, color="black", linewidth=0.9, linestyle=(0, (1, 2)), label=f"chance ({100 * chance:.3g}%)")
    for layer, colour in colours.items():
        own = sorted((row for row in rows if row.layer == layer), key=lambda row: row.distance)
        xs = [distances.index(row.distance) for row in own]
        found = [row.accuracy for row in own]
        errors = np.clip([[i.value - i.low for i in found], [i.high - i.value for i in found]], 0, None)
        if own:
            axis.errorbar(
                xs, [i.value for i in found], yerr=errors, color=colour, marker="o", markersize=3, linewidth=1.2,
                elinewidth=0.6,
            )  # fmt: skip
    axis.set_ylim(max(-0.03, chance - 0.18), 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    counts = {row.accuracy.n for row in rows}
    axis.legend(title=f"n = {max(counts)} a point", title_fontsize=7, fontsize=7, loc="upper right", frameon=False)


def _answers(axis: Axes, rows: Sequence[PatchRow], distances: Sequence[int]) -> None:
    for way, (colour, marker, name) in _WAYS.items():
        own = [row for row in rows if row.exchanged == way]
        if way == "nothing":
            for row in own:
                axis.axhline(row.other.value, color=colour, linewidth=1.2, linestyle="--", label=name)
            continue
        xs = [distances.index(row.distance) for row in own if row.distance is not None]
        found = [row.other for row in own]
        errors = np.clip([[i.value - i.low for i in found], [i.high - i.value for i in found]], 0, None)
        if own:
            axis.errorbar(
                xs, [i.value for i in found], yerr=errors, color=colour, marker=marker, markersize=5, capsize=2,
                label=name,
            )  # fmt: skip
    axis.set_ylim(-0.05, 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_ylabel("answers with the other run's needle", fontsize=9)
    untouched = next((row.own for row in rows if row.exchanged == "nothing"), None)
    base = "" if untouched is None else f"\nuntouched, its own: {untouched.value:.0%}, n = {untouched.n}"
    axis.set_title(f"patch: memory of another run{base}", fontsize=9)
    axis.legend(fontsize=7, loc="center right", frameon=False)


def _changes(axis: Axes, rows: Sequence[PatchRow], distances: Sequence[int]) -> None:
    for way, (colour, marker, name) in _WAYS.items():
        own = [row for row in rows if row.exchanged == way and row.distance is not None]
        if not own:
            continue
        xs = [distances.index(row.distance) for row in own if row.distance is not None]
        for what, line, fill in (("other", "-", colour), ("own", ":", "white")):
            found = [row.other_change if what == "other" else row.own_change for row in own]
            errors = np.clip([[i.value - i.low for i in found], [i.high - i.value for i in found]], 0, None)
            axis.errorbar(
                xs, [i.value for i in found], yerr=errors, color=colour, linestyle=line, marker=marker, markersize=5,
                markerfacecolor=fill, capsize=2, label=f"{name}: {what} needle",
            )  # fmt: skip
    axis.axhline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_ylabel("change of ln p of the needle (nats)", fontsize=9)
    axis.set_title("patch: memory of another run\nagainst nothing exchanged", fontsize=9)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.45 * (high - low))  # room for the legend above the lines
    axis.legend(fontsize=7, loc="upper right", frameon=False)


def _colours(layers: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Dark for the first layer to light for the last."""
    from matplotlib import colormaps

    palette = colormaps["viridis"](np.linspace(0.0, 0.92, len(layers)))
    return {layer: tuple(colour) for layer, colour in zip(layers, palette, strict=True)}


def _layer_bar(figure: Figure, axes: np.ndarray, layers: Sequence[int], colours: dict[int, tuple[float, ...]]) -> None:
    scale = ScalarMappable(Normalize(-0.5, len(layers) - 0.5), ListedColormap(list(colours.values())))
    bar = figure.colorbar(scale, ax=axes.ravel().tolist(), location="left", shrink=0.6, pad=0.02)
    shown = [round(i) for i in np.linspace(0, len(layers) - 1, min(len(layers), 12))]
    bar.set_ticks(shown, labels=[str(layers[i]) for i in shown])
    bar.ax.tick_params(labelsize=8, length=0)
    bar.ax.invert_yaxis()
    bar.set_label("layer", fontsize=9)
