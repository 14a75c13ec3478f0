"""Analyses as figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrosys.analysis.attention import Heads
from pyrosys.analysis.comparison import Analysis, Change, Comparison, Similarity
from pyrosys.analysis.statistics import Summary

__all__ = ["figures", "plot_attention_maps"]

MOST_LABELS = 40  # names along an axis that can still be read
COLOURS = ("tab:blue", "tab:orange")  # of the one or two models


def figures(found: Analysis | Comparison) -> Iterator[tuple[str, str, Figure]]:
    """Draw what was measured: a name, what it shows, and the figure, one by one."""
    sides = [found] if isinstance(found, Analysis) else [found.first, found.second]
    yield "weights", "Parameters of each Module", _plot_summaries({side.name: side.weights for side in sides})
    yield "activations", "What each Module returns", _plot_summaries({side.name: side.activations for side in sides})
    for number, side in enumerate(sides, start=1):
        if side.attention:
            title = f"Where the heads of {side.name} look"
            yield f"heads-{number}", title, _plot_heads(side.attention)
            title = f"What each token (row) of the first input attends to in {side.name}, mean over heads"
            yield f"attention-{number}", title, plot_attention_maps(side.maps)
    if any(side.calibration is not None and side.calibration.count for side in sides):
        yield "calibration", "Accuracy by confidence, for hidden residues", _plot_calibration(sides)
    if isinstance(found, Comparison):
        if found.similarity is not None:
            title = "Likeness of representations (unbiased linear CKA)"
            yield "similarity", title, _plot_similarity(found.similarity, (found.first.name, found.second.name))
        if found.changes:
            title = f"How the tensors of {found.second.name} differ from those of {found.first.name}"
            yield "changes", title, _plot_changes(found.changes)


def plot_attention_maps(maps: Mapping[str, Tensor], letters: Sequence[str] = ()) -> Figure:
    """Draw attention maps, layer by layer.

    Args:
        maps: How much each token (row) attends to each other (column), by the name of the layer.
        letters: Names of the tokens, if they should be along the axes.
    """
    columns = min(6, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.3 * rows), layout="constrained")
    ticks = range(len(letters) if len(letters) <= MOST_LABELS else 0)
    for place, (name, weights) in enumerate(maps.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(weights.float().numpy(), cmap="Blues", vmin=0)
        axes.set_title(_plain(name), fontsize=7)
        axes.set_xticks(ticks, [letters[tick] for tick in ticks], fontsize=5)
        axes.set_yticks(ticks, [letters[tick] for tick in ticks], fontsize=5)
    return figure


def _plot_summaries(summaries: Mapping[str, Mapping[str, Summary]]) -> Figure:
    """Mean and standard deviation by Module, in the order of the first model."""
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary))
    figure = Figure(figsize=(10, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for (side, summary), colour in zip(summaries.items(), COLOURS[: len(summaries)], strict=True):
        places = [place for place, name in enumerate(names) if name in summary]
        style = {"color": colour, "label": _plain(side), "marker": ".", "linestyle": "none"}
        top.plot(places, [summary[names[place]].mean for place in places], **style)
        bottom.plot(places, [summary[names[place]].deviation for place in places], **style)
    top.set_ylabel("mean")
    bottom.set_ylabel("standard deviation")
    for axes in (top, bottom):
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.grid(alpha=0.3)
    top.legend()
    _label(bottom, "x", [name or "(whole)" for name in names])
    return figure


def _plot_heads(attention: Mapping[str, Heads]) -> Figure:
    figure = Figure(figsize=(10, 1.5 + 0.25 * len(attention)), layout="constrained")
    for axes, field, unit in zip(figure.subplots(1, 2), ("entropy", "distance"), ("nats", "tokens"), strict=True):
        most = max(len(heads.entropy) for heads in attention.values())
        values = np.full((len(attention), most), np.nan)
        for row, heads in enumerate(attention.values()):
            numbers = getattr(heads, field)
            values[row, : len(numbers)] = numbers
        figure.colorbar(axes.imshow(values, aspect="auto", cmap="viridis"), ax=axes)
        axes.set_title(f"{field} ({unit})")
        axes.set_xlabel("head")
        _label(axes, "y", list(attention))
    return figure


def _plot_calibration(sides: Sequence[Analysis]) -> Figure:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for side, colour in zip(sides, COLOURS[: len(sides)], strict=True):
        found = side.calibration
        if found is not None and found.count:
            filled = [bin for bin, count in enumerate(found.counts) if count]
            confidence, accuracy = (
                [numbers[bin] / found.counts[bin] for bin in filled] for numbers in (found.confidence, found.correct)
            )
            label = f"{_plain(side.name)}: error {found.error:.3f}"
            axes.plot(confidence, accuracy, marker="o", color=colour, label=label)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    return figure


def _plot_similarity(similarity: Similarity, names: tuple[str, str]) -> Figure:
    size = (3 + 0.2 * len(similarity.columns), 2 + 0.2 * len(similarity.rows))
    figure = Figure(figsize=(max(size[0], 5), max(size[1], 4)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(similarity.values, vmin=0, vmax=1, origin="lower", cmap="magma")
    figure.colorbar(image, ax=axes)
    axes.set(xlabel=_plain(names[1]), ylabel=_plain(names[0]))
    _label(axes, "x", similarity.columns)
    _label(axes, "y", similarity.rows)
    return figure


def _plot_changes(changes: Mapping[str, Change]) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(changes)), [change.relative for change in changes.values()])
    axes.set_ylabel("relative change")
    _label(axes, "x", list(changes))
    return figure


def _label(axes: Axes, axis: str, names: Sequence[str]) -> None:
    """Name what is along an axis, as many of them as can be read."""
    step = -(-len(names) // MOST_LABELS)
    shown = range(0, len(names), step) if names else range(0)
    texts = [_plain(names[place]) for place in shown]
    if axis == "x":
        axes.set_xticks(shown, texts, rotation=90, fontsize=6)
    else:
        axes.set_yticks(shown, texts, fontsize=6)


def _plain(name: str) -> str:
    """A name as it is, where matplotlib would read formulas."""
    return name.replace("$", r"\$")
