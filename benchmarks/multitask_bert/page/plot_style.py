"""How plots look: colours, panels, curves, legends."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.multitask_bert.records.rows import CONSTANT
from benchmarks.multitask_bert.records.run import Json
from benchmarks.multitask_bert.records.series import Points, deviation, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Okabe & Ito's palette, a wine red in place of its yellow, which is too light for a line on white.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"),
    "#882255",
)
INK, QUIET, PAPER = "#1d2125", "#5c646c", "#fdfdfc"  # those of the page
PALE, FAINT = "#a9aeb2", "#ecedec"
# Where a reader prefers the dark, each gives way to another.
DARK: Mapping[str, str] = {
    **{INK: "#e3e6e8", QUIET: "#a0a8af", PAPER: "#15181b", PALE: "#6a7178", FAINT: "#2a2f34"},
    **dict(
        zip(
            (colour.lower() for colour in COLOURS),
            (
                *("#4ba3e3", "#f08a3c", "#2cc79a", "#e09cc2", "#f0b429", "#7cc8f2", "#b5bbc0"),
                "#d0709b",
            ),
            strict=True,
        )
    ),
}
LINE_STYLES = ("-", "--", ":", "-.")
STYLE: Mapping[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.facecolor": PAPER,
    "figure.titlesize": 13,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # each text of an SVG names them all
    "font.size": 9.5,
    "grid.alpha": 0.3,
    "grid.color": PALE,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: small, and as sharp as the page's
    "svg.hashsalt": "gradsurgery",  # the same names in every file, so that it can be compared
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
RANDOM = "random directions"
REFERENCES = (CONSTANT, RANDOM)  # last in every legend
REFERENCE_LINE: Mapping[str, Any] = {"color": QUIET, "linestyle": ":", "linewidth": 1.4}
DPI = 120  # of the few parts that are drawn as pictures


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG that follows the reader's choice of light or dark."""
    file = io.StringIO()
    figure.savefig(file, format="svg", dpi=DPI, metadata={"Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(with_dark(file.getvalue()), encoding="utf-8")


def with_dark(svg: str) -> str:
    """Give a drawing of matplotlib's its dark colours, and leave out what nobody sees of it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<(?!image)[^>]*>", _rounded, svg)
    svg = re.sub(r"\s*\n\s*|<g/>", " ", svg)
    named = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in named else "", svg)
    used = [colour for colour in DARK if colour in svg]
    for colour in used:
        svg = svg.replace(colour, f"var(--{colour[1:]})")
    light = "".join(f"--{colour[1:]}:{colour};" for colour in used)
    dark = "".join(f"--{colour[1:]}:{DARK[colour]};" for colour in used)
    style = f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    head, opening, rest = re.split(r"(<svg[^>]*>)", svg, maxsplit=1)
    return f"{head}{opening}<style>{style}</style>{rest}"


def _rounded(tag: re.Match[str]) -> str:
    """Round the coordinates in a tag to a hundredth of a point; texts stand outside of tags."""
    return re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag[0])


def grid(
    count: int, size: tuple[float, float] = (4.0, 3.1), max_columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``count`` panels, each of ``size`` inches."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 and max_columns == 3 else min(count, max_columns)
    lines = math.ceil(count / columns)
    # Without pyplot there is no window, no global state, and PNG files come from Agg.
    figure = Figure(
        figsize=(max(7.0, size[0] * columns), size[1] * lines + 1.2), layout="constrained"
    )
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels beside each other that share the names at their left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 + 2.3 * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True).flat)


def draw_curve(
    axis: Axes, curves: Sequence[Points], index: int, label: str, marker: str | None = None
) -> None:
    """Draw the mean over the seeds, and a band of a standard deviation where there are several.

    A single point is no curve, and is left out.
    """
    from matplotlib.ticker import MaxNLocator

    steps, means, spreads = across(curves)
    if len(steps) < 2:
        return
    axis.plot(
        steps, means, linewidth=1.8, marker=marker, markersize=3.5, label=label, **line_style(index)
    )
    if len(curves) > 1:
        low, high = means - spreads, means + spreads
        axis.fill_between(steps, low, high, color=colour(index), alpha=0.15, linewidth=0)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def line_style(index: int) -> Json:
    """Give colour and dashes, so that no two of the first 32 lines look the same."""
    dashes = LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
    return {"color": colour(index), "linestyle": dashes}


def finish(figure: Figure, axes: Sequence[Axes], caption: str) -> None:
    """Put one legend for all panels below them, where it covers nothing."""
    entries: dict[Any, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels = sorted(entries, key=lambda label: label in REFERENCES)
    handles = [entries[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=caption)


def across(curves: Sequence[Points]) -> tuple[list[int], NDArray[Any], NDArray[Any]]:
    """Give steps, mean and standard deviation over the runs that have a number there."""
    steps = sorted({step for curve in curves for step in curve})
    values = [finite(curve.get(step, math.nan) for curve in curves) for step in steps]
    means = [np.mean(found) if found else math.nan for found in values]
    return steps, np.array(means), np.array([deviation(found) for found in values])
