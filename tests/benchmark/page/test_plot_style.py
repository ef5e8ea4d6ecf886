"""Drawings as files against the figures that they were made of."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np

from benchmarks.multitask_bert.page.plot_style import (
    COLOURS,
    DARK,
    INK,
    STYLE,
    grid,
    with_dark,
    write_svg,
)

TEXT = "{http://www.w3.org/2000/svg}text"


def drawing(path: Path) -> str:
    with matplotlib.rc_context(dict(STYLE)):
        figure, (axis,) = grid(1)
        axis.plot([0.123456, 2], [1.5, 7.123456], color=COLOURS[0])
        axis.imshow(np.eye(3), cmap="PuOr_r")
        axis.text(0.5, 0.5, "0.123456 & <b>")
        axis.set_title("tasks' gradients")
        write_svg(figure, path)
    return path.read_text(encoding="utf-8")


def test_texts_stay_and_coordinates_are_short(tmp_path: Path) -> None:
    svg = drawing(tmp_path / "deep/a.svg")
    root = ElementTree.fromstring(svg)
    assert {"0.123456 & <b>", "tasks' gradients"} <= {each.text for each in root.iter(TEXT)}
    bare = re.sub(r"<image[^>]*>", "", svg)
    numbers = re.findall(r'(?:d|x|y|transform)="[^"]*?(-?\d+\.\d+)', bare)
    assert numbers
    assert max(len(number.partition(".")[2]) for number in numbers) <= 2
    assert "metadata" not in svg
    assert svg == drawing(tmp_path / "b.svg")


def test_every_colour_of_ours_has_a_dark_one(tmp_path: Path) -> None:
    svg = drawing(tmp_path / "a.svg")
    style, rest = svg.split("</style>", 1)
    for colour in (INK, COLOURS[0].lower()):
        assert f"--{colour[1:]}:{colour};" in style
        assert f"--{colour[1:]}:{DARK[colour]};" in style.partition("prefers-color-scheme:dark")[2]
        assert f"var(--{colour[1:]})" in rest
        assert colour not in rest
    assert set(map(str.lower, COLOURS)) <= DARK.keys()


def test_a_name_that_is_used_stays() -> None:
    kept = '<svg viewBox="0 0 1 1"> <path id="a1"/> <use xlink:href="#a1"/> <g id="b"/> </svg>'
    assert 'id="a1"' in with_dark(kept)
    assert 'id="b"' not in with_dark(kept)
