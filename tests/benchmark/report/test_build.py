"""The report against numbers worked out by hand from run folders made up here."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.multitask_bert.records.rows import OVERALL
from benchmarks.multitask_bert.report.build import report
from tests.benchmark.records.made_up_runs import (
    COSINE,
    COSINE_PCGRAD,
    LOSS_SUM,
    METRICS,
    PCGRAD,
    make_events,
    write_events,
    write_run,
)
from tests.paths import ROOT, SHARED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INVENTORY = SHARED / "reference/results.json"
PLOTS = ("learning-curves", "training-losses", "conflict-rates", "cosines", "methods")


@pytest.fixture
def markdown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Give ``report`` without its plots, which take a second or two."""
    monkeypatch.setattr("benchmarks.multitask_bert.report.plots.all.PLOTS", {})
    return report


def tables_of(text: str) -> list[list[dict[str, str]]]:
    """Give the rows of every table by column; of a title of several lines, the metric's counts."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            header, _, *rows = (
                [cell.strip() for cell in line.strip("|").split(" | ")]
                for line in block.splitlines()
            )
            titles = [title.split(" │ ")[:2][-1] for title in header]
            found.append([dict(zip(titles, row, strict=True)) for row in rows])
    return found


def row_of(text: str, name: str, table: int = 0) -> dict[str, str]:
    """Give the cells of the row that begins with a name, by column."""
    rows = tables_of(text)[table]
    (row,) = [row for row in rows if next(iter(row.values())).split(" │ ")[0] == name]
    return row


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_cells_are_mean_and_deviation_beside_the_published_number(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    values = {"sst": [0.40, 0.43, 0.49], "quora": [0.80, 0.82, 0.81], "sts": [0.7, 0.8, 0.75]}
    for seed in range(3):
        write_run(tmp_path, PCGRAD, seed, metrics={task: v[seed] for task, v in values.items()})
    row = row_of(markdown([tmp_path]), f"`{PCGRAD}`")

    def cell(numbers: Sequence[float], published: float) -> str:
        mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
        return f"{mean:.3f} ± {deviation:.3f} (3 seeds) │ {published:.3f} │ {mean - published:+.3f}"

    means = [sum(v[i] for v in values.values()) / 3 for i in range(3)]
    normalised = [
        (values["sst"][i] + values["quora"][i] + (values["sts"][i] + 1) / 2) / 3 for i in range(3)
    ]
    assert row["method"] == "PCGrad"
    assert row["seeds"] == "0, 1, 2"
    # Two standard errors: 2 * hypot(0.0458 / sqrt(3), 0.0150) of the seeds and 1,101 examples.
    assert row["SST accuracy"] == "0.440 ± 0.046 (3 seeds) │ 0.500 │ ≈ -0.060"
    assert row["Quora accuracy"] == cell(values["quora"], 0.853)
    assert row["STS Pearson r"] == cell(values["sts"], 0.864)
    assert row["mean"] == cell(means, 0.739)
    assert row["normalised"] == cell(normalised, (0.5 + 0.853 + (0.864 + 1) / 2) / 3)
    assert row["samples/s (training / evaluation)"] == "31 / 100"


def test_one_seed_and_a_system_without_published_number(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, LOSS_SUM)
    text = markdown([tmp_path])
    row = row_of(text, f"`{LOSS_SUM}`")
    assert row["SST accuracy"] == "0.430 (1 seed) │ -"
    assert row["method"] == "loss sum"
    constant = row_of(text, "constant predictor")
    assert constant["SST accuracy"] == "0.260"
    assert constant["STS Pearson r"] == "0.000"
    assert constant["mean"] == f"{(0.26 + 0.62) / 3:.3f}"
    assert constant["normalised"] == f"{(0.26 + 0.62 + 0.5) / 3:.3f}"


PUBLISHED = tomllib.loads((ROOT / "benchmarks/multitask_bert/report/published.toml").read_text())


def test_published_numbers_of_three_systems() -> None:
    systems = PUBLISHED["systems"]
    assert tuple(systems[COSINE]["dev"].values()) == (0.501, 0.831, 0.676, 0.669)
    assert tuple(systems[PCGRAD]["dev"].values()) == (0.500, 0.853, 0.864, 0.739)
    assert tuple(systems[COSINE_PCGRAD]["dev"].values()) == (0.518, 0.375, 0.171, 0.355)


@pytest.mark.parametrize("id", PUBLISHED["systems"])
def test_a_published_overall_is_that_of_its_metrics(id: str) -> None:
    """Within what rounding can do, of the score and of its three metrics, but where a caution says
    that it is not."""
    system = PUBLISHED["systems"][id]
    kind = PUBLISHED["reports"][system["report"]]["overall"]
    for split in ("dev", "test"):
        metrics = dict(system.get(split, {}))
        overall = metrics.pop("overall", None)
        if overall is not None and len(metrics) == 3:
            digits = 0.005 if round(overall, 2) == overall else 0.0005
            of_metrics = 0.0005 if kind == "mean" else 0.0005 * 2.5 / 3
            exact = abs(overall - OVERALL[kind](metrics)) <= digits + of_metrics + 1e-9
            assert exact != ("overall" in system.get("caution", ""))


@pytest.mark.skipif(not INVENTORY.exists(), reason="the inventory is not beside the checkout")
def test_published_numbers_are_those_of_the_inventory() -> None:
    names = {"sst": "sst", "para": "quora", "sts": "sts", "cfimdb": "cfimdb"}
    expected = {}
    for item in json.loads(INVENTORY.read_text()):
        found: dict[str, dict[str, float]] = {}
        for split in ("dev", "test"):
            reported = {**item["reported"], **(item["reported"].get(split) or {})}
            for name, task in names.items():
                kind = "corr" if name == "sts" else "acc"
                value = reported.get(f"{name}_{split}_{kind}")
                if value is not None:
                    found.setdefault(split, {})[task] = value
            overall = (item["reported"].get(split) or {}).get("overall")
            if overall is not None:
                found.setdefault(split, {})["overall"] = overall
        if found and item["count_in_seed"]:
            expected[item["id"]] = found
    assert {
        id: {split: system[split] for split in ("dev", "test") if split in system}
        for id, system in PUBLISHED["systems"].items()
    } == expected


def test_published_numbers_of_another_split_are_marked(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, PCGRAD, examples={"sst": 1101, "quora": 1999, "sts": 863})
    text = markdown([tmp_path])
    row = row_of(text, f"`{PCGRAD}`")
    assert row["SST accuracy"].endswith("│ 0.500 │ -0.070")
    assert row["STS Pearson r"].endswith("│ 0.864 │ -0.034")
    assert row["Quora accuracy"].endswith("│ 0.853 ≠")
    assert row["mean"].endswith("│ 0.739 ≠")
    assert "≠ Published for another dev split, so do not compare: Quora (here 1,999" in text


def test_first_line_says_what_the_data_are(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "real", PCGRAD)
    notice = "synthetic corpus: not the real thing"
    write_run(tmp_path / "made up", PCGRAD, data="synthetic", data_notice=notice)
    assert markdown([tmp_path / "real"]).startswith("Data: SST, Quora and STS from some/folder.\n")
    text = markdown([tmp_path / "made up"])
    assert text.splitlines()[0] == (
        "**SYNTHETIC DATA, NOT SST, QUORA AND STS.** Synthetic corpus: not the real thing."
    )
    assert row_of(text, f"`{PCGRAD}`")["SST accuracy"].endswith("│ 0.500 ≠")
    text = markdown([tmp_path])
    assert text.startswith("**2 sources of data: compare no number across them.**\n")


def test_plots_are_written_and_linked(tmp_path: Path) -> None:
    for recipe in (LOSS_SUM, COSINE, PCGRAD, COSINE_PCGRAD):
        for seed in range(2):
            write_run(tmp_path / "runs", recipe, seed)
    text = report([tmp_path / "runs"], tmp_path / "out")
    assert (tmp_path / "out/report.md").read_text(encoding="utf-8") == text
    assert sorted(path.stem for path in (tmp_path / "out/plots").iterdir()) == sorted(PLOTS)
    for name in PLOTS:
        assert f"](plots/{name}.png)" in text
        path = tmp_path / f"out/plots/{name}.png"
        assert min(png_size(path)) > 400
        assert path.stat().st_size > 20_000
    assert not (tmp_path / "runs/report.md").exists()


def test_each_source_of_data_has_plots_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", PCGRAD, num_steps=20, num_devs=1)
    write_run(tmp_path / "b", PCGRAD, num_steps=20, num_devs=1, data="synthetic")
    text = report([tmp_path])
    for path in ("plots/1-methods.png", "plots/2-methods.png"):
        assert f"]({path})" in text
        assert png_size(tmp_path / path)


@pytest.mark.parametrize("key", ["smet-walker", "chada-jolly", "benton", "xu", "jiang-yu"])
def test_a_report_has_its_own_order(markdown: Callable[..., str], tmp_path: Path, key: str) -> None:
    """Rows and columns against the file of published numbers, the runs made in another order."""
    printed = PUBLISHED["reports"][key]["tables"]
    ids = [id for table in printed for id in table["systems"]]
    for id in sorted(ids):
        cfimdb = "cfimdb" in id
        write_run(
            tmp_path,
            id,
            metrics={"cfimdb": 0.9} if cfimdb else METRICS,
            examples={"cfimdb": 245} if cfimdb else None,
            num_steps=10,
            num_devs=1,
        )
    text = markdown([tmp_path])
    for table, block in zip(printed, tables_of(text), strict=False):
        *rows, constant = block
        assert [row["system"].split(" │ ")[0] for row in rows] == [
            f"`{id}`" for id in table["systems"]
        ]
        assert constant["system"] == "constant predictor"
    headers = [line for line in text.splitlines() if line.startswith("| system")]
    overall = PUBLISHED["reports"][key]["overall"]
    for table, line in zip(printed, headers, strict=True):
        titles = [cell.strip().split(" │ ") for cell in line.strip("|").split(" | ")][1:]
        printed_columns = list(table["columns"].items())
        found = [title[0] for title in titles[: len(printed_columns)]]
        assert found == [name for _, name in printed_columns]
        for (column, _), title in zip(printed_columns, titles, strict=False):
            assert column != "overall" or title[1] == overall
        assert {"mean", "normalised"} <= {part for title in titles for part in title}


def test_a_control_stands_below_what_it_controls(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, "benton/ann-concat")
    write_run(tmp_path, "benton/equit-concat")
    write_run(tmp_path, "my/own", description="smet-walker-like, of nobody")
    pcgrad = "control/benton-concat-joint with PCGrad"
    write_run(tmp_path, "control/benton-concat-pcgrad", description=pcgrad)
    joint = "benton/ann-concat with a batch of each task"
    write_run(tmp_path, "control/benton-concat-joint", description=joint)
    benton, others, *_ = tables_of(markdown([tmp_path]))
    assert [row["system"].split(" │ ")[0] for row in benton] == [
        "`benton/ann-concat`",
        "`control/benton-concat-joint`",
        "`control/benton-concat-pcgrad`",
        "`benton/equit-concat`",
        "constant predictor",
    ]
    assert benton[1]["system"].endswith(f"control: {joint}")
    assert others[0]["system"] == "`my/own` │ smet-walker-like, of nobody"


def test_every_control_names_what_it_controls() -> None:
    from benchmarks.multitask_bert.recipes.catalog import all_recipes

    recipes = all_recipes()
    printed = [table for key in PUBLISHED["reports"].values() for table in key["tables"]]
    in_reports = {id for table in printed for id in table["systems"]}
    assert in_reports <= recipes.keys()
    for id, recipe in recipes.items():
        first = recipe.description.partition(" ")[0]
        assert id in in_reports or first in recipes, f"{id}: {recipe.description}"


def test_noise_and_what_is_more(markdown: Callable[..., str], tmp_path: Path) -> None:
    """One seed of an accuracy of 0.53 on 1,101 examples has a standard error of 0.01504."""
    write_run(tmp_path, PCGRAD, metrics={**METRICS, "sst": 0.50 + 1.99 * 0.01504})
    row = row_of(markdown([tmp_path]), f"`{PCGRAD}`")
    assert row["SST accuracy"] == "0.530 (1 seed) │ 0.500 │ ≈ +0.030"
    write_run(tmp_path / "more", PCGRAD, metrics={**METRICS, "sst": 0.50 + 2.1 * 0.01504})
    row = row_of(markdown([tmp_path / "more"]), f"`{PCGRAD}`")
    assert row["SST accuracy"] == "0.532 (1 seed) │ 0.500 │ +0.032"


def test_noise_of_an_overall_score_is_that_of_its_tasks(tmp_path: Path) -> None:
    from benchmarks.multitask_bert.records.rows import find_runs, group_by_data
    from benchmarks.multitask_bert.report.comparison import compare

    values = (0.5, 0.52)
    for seed, value in enumerate(values):
        write_run(tmp_path, PCGRAD, seed, metrics={"sst": value, "quora": 0.8, "sts": 0.6})
    (section,) = group_by_data(find_runs([tmp_path])[0])
    (row,) = section.rows
    sst = math.sqrt(0.51 * 0.49 / 1101)
    quora = math.sqrt(0.8 * 0.2 / 20212)
    sts = (1 - 0.6**2) / math.sqrt(862)
    seeds = statistics.stdev(values) / math.sqrt(2)
    assert compare(section, row, "sst").standard_error == pytest.approx(math.hypot(seeds, sst))
    for column, share in (("mean", 1.0), ("normalised", 0.5)):
        expected = math.hypot(seeds, sst, quora, share * sts) / 3
        assert compare(section, row, column).standard_error == pytest.approx(expected)


def test_what_older_evaluations_printed(markdown: Callable[..., str], tmp_path: Path) -> None:
    assert "older evaluation" not in markdown([write_run(tmp_path / "old", PCGRAD)])
    for seed in range(2):
        folder = write_run(tmp_path / "new", PCGRAD, seed)
        *events, end = (folder / "metrics.jsonl").read_text().splitlines()
        sts = {"sigmoid": 0.7 + seed / 100, "integer-labels": 0.81, "both": 0.69}
        legacy = {"sts": sts, "quora": {"double-sigmoid": 0.375}}
        events.append(json.dumps({**json.loads(end), "legacy": legacy}))
        (folder / "metrics.jsonl").write_text("\n".join(events))
    text = markdown([tmp_path / "new"])
    assert "## As older evaluation code would have it" in text
    (line,) = [line for line in text.splitlines() if "0.705 ± 0.007" in line]
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    sts = ["0.830 ± 0.000", "0.705 ± 0.007", "0.810 ± 0.000", "0.690 ± 0.000", "0.864"]
    assert cells == [f"`{PCGRAD}`", *sts, "0.800 ± 0.000", "0.375 ± 0.000", "0.853"]


def test_claims_are_told(
    monkeypatch: pytest.MonkeyPatch, markdown: Callable[..., str], tmp_path: Path
) -> None:
    found = [
        SimpleNamespace(id="C1", claim="It | fails.", source="xu", verdict=verdict, evidence="`a`")
        for verdict in ("supported", "contradicted", "inconclusive", "not tested")
    ]
    monkeypatch.setattr("benchmarks.multitask_bert.report.build.findings", lambda section: found)
    folder = write_run(tmp_path, PCGRAD)
    lines = [" ".join(line.split()) for line in markdown([tmp_path]).splitlines()]
    for each in found:
        assert f"| C1 | It \\| fails. | xu | {each.verdict} | `a` |" in lines
    page = (tmp_path / "report.html").read_text()
    assert '<td><span class="bad">contradicted</span></td><td><code>a</code></td>' in (
        page.replace("\n", "")
    )
    assert folder.exists()


def test_all_claims_have_a_verdict(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD)
    text = markdown([tmp_path])
    assert "± is the standard error. A number decides where it lies more than 2 of them" in text
    rows = tables_of(text)[1]
    assert [row["no."] for row in rows] == [f"C{number}" for number in range(1, 31)]


def test_runs_of_one_folder_and_other_tasks_go_together(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, PCGRAD)
    cfimdb = {"metrics": {"cfimdb": 0.9}, "examples": {"cfimdb": 245}}
    write_run(tmp_path, "jiang-yu/minbert-cfimdb-finetune", data_notice="CFIMDB", **cfimdb)
    text = markdown([tmp_path])
    assert text.startswith("Data: SST, Quora and STS from some/folder.\n")
    assert row_of(text, "`jiang-yu/minbert-cfimdb-finetune`", 1)["CFIMDB accuracy"].endswith(
        "│ 0.971 │ -0.071"
    )
    write_run(tmp_path, LOSS_SUM, examples={"sst": 500, "quora": 20212, "sts": 863})
    assert markdown([tmp_path]).startswith("**2 sources of data")


def test_many_recipes_have_plots_for_each_report(tmp_path: Path) -> None:
    ids = [id for table in PUBLISHED["reports"]["smet-walker"]["tables"] for id in table["systems"]]
    for id in [*ids[:11], "xu/dense-tuned"]:
        write_run(tmp_path, id, num_steps=20, num_devs=1, conflicts=id == PCGRAD)
    (tmp_path / "plots").mkdir()
    stale = [tmp_path / "plots" / name for name in ("methods.png", "2-cosines--xu-1.png")]
    kept = tmp_path / "plots/errors.png"
    for path in (*stale, kept):
        path.write_text("")
    text = report([tmp_path])
    assert not any(path.exists() for path in stale)
    assert kept.exists()
    for slug in ("--smet-walker-1", "--smet-walker-2", "--xu-1"):
        assert f"](plots/learning-curves{slug}.png)" in text
        assert png_size(tmp_path / f"plots/learning-curves{slug}.png")
    assert len(list((tmp_path / "plots").glob("cosines*"))) == 1
    assert "<summary>Smet and Walker, 2 of 2</summary>" in text


def test_conflict_table(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD)
    events = [
        {
            "event": "train",
            "step": step,
            "cosines": {"sst~quora": c},
            "conflict_rate": {"sst~quora": r},
        }
        for step, c, r in [(1, 0.2, 0.0), (2, -0.4, 0.5), (3, math.nan, None), (4, -0.1, 0.75)]
    ]
    write_events(folder, events)
    text = markdown([tmp_path])
    row = row_of(text, f"`{PCGRAD}`", table=2)
    deviation = statistics.stdev([0.2, -0.4, -0.1])
    assert "| SST and Quora │ cosine │ in conflict |" in text
    assert row["cosine"] == f"-0.100 ± {deviation:.3f} │ 0.750"


def test_norms_before_and_after(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD)
    norms = [{"sst": 3.0, "sts": 8.0}, {"sst": 4.0, "sts": 10.0}]
    after = [{"sst": 2.0, "sts": 8.0}, None]
    write_events(
        folder,
        [
            {
                "event": "train",
                "step": step,
                "cosines": {"sst~sts": -0.1},
                "norms": norms[step],
                "norms_after": after[step],
                "norm_before": 12.0,
                "norm_after": 11.0 + step,
            }
            for step in range(2)
        ],
    )
    text = markdown([tmp_path])
    (line,) = [line for line in text.splitlines() if "3.5 → 2" in line]
    assert [cell.strip() for cell in line.strip("|").split(" | ")] == [
        f"`{PCGRAD}`",
        "PCGrad",
        "-0.100 ± 0.000 │ -",
        "3.5 → 2",
        "9 → 8",
        "12 → 11.5",
    ]


def test_cosines_by_layer(tmp_path: Path) -> None:
    """The mean over steps and seeds, the layers in their order, against numbers by hand."""
    from benchmarks.multitask_bert.records.rows import find_runs, group_by_data
    from benchmarks.multitask_bert.report.plots.heatmaps import draw_layer_cosines

    names = ["pooler", "layer 10", "embeddings", "layer 2"]
    for seed in range(2):
        folder = write_run(tmp_path, PCGRAD, seed)
        events = [
            {
                "event": "train",
                "step": step,
                "cosines": {"sst~quora": 0.0},
                "layer_cosines": {
                    name: {"quora~sst": 0.1 * number + 0.01 * step + 0.1 * seed}
                    for number, name in enumerate(names)
                },
            }
            for step in (0, 2)
        ]
        write_events(folder, events)
    (section,) = group_by_data(find_runs([tmp_path])[0])
    figure = draw_layer_cosines(section, section.rows)
    assert figure is not None
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "embeddings",
        "layer 2",
        "layer 10",
        "pooler",
    ]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["SST\nQuora"]
    expected = [[0.2], [0.3], [0.1], [0.0]]
    np.testing.assert_allclose(panel.images[0].get_array(), np.array(expected) + 0.01 + 0.05)
    assert "](plots/layer-cosines.png)" in report([tmp_path])


def test_no_conflicts_on_record(tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, conflicts=False)
    text = report([tmp_path])
    assert "None on record" in text
    assert not (tmp_path / "plots/cosines.png").exists()
    assert not (tmp_path / "plots/conflict-rates.png").exists()
    assert "cosines.png" not in text


def test_a_plot_without_data_is_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD)
    report([tmp_path])
    assert (tmp_path / "plots/cosines.png").exists()
    write_events(folder, make_events(PCGRAD, 0, METRICS, 100, 1, conflicts=False, examples=None))
    report([tmp_path])
    assert not (tmp_path / "plots/cosines.png").exists()


def test_unfinished_runs_are_marked_and_not_mixed_with_complete_ones(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, LOSS_SUM, 0)
    write_run(
        tmp_path, LOSS_SUM, 1, finished=False, num_steps=250, metrics=dict.fromkeys(METRICS, 0.1)
    )
    write_run(tmp_path, PCGRAD, 7, finished=False, num_steps=120)
    text = markdown([tmp_path])
    row = row_of(text, f"`{LOSS_SUM}`")
    assert row["seeds"] == "0; not counted: 1 (unfinished, step 250)"
    assert row["SST accuracy"] == "0.430 (1 seed) │ -"
    row = row_of(text, f"`{PCGRAD}`")
    assert row["seeds"] == "7 (unfinished, step 120)"
    assert row["SST accuracy"] == "0.430 (1 seed) │ 0.500 │ -0.070"
    assert row["samples/s (training / evaluation)"] == "32 / 75"


def test_a_run_that_went_on_after_its_end_is_unfinished(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 410, "losses": {"sst": 1.0}}\n')
    assert row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")["seeds"] == "0 (unfinished, step 410)"


def test_a_cut_last_line_is_ignored(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, LOSS_SUM, finished=False)
    whole = markdown([tmp_path])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"event": "end", "step": 999, "text": "é'.encode()[:-1])
    assert markdown([tmp_path]) == whole


def test_a_damaged_line_is_named(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[5] = lines[5][:20]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert f"`{folder}`: 1 damaged line of metrics.jsonl left out." in markdown([tmp_path])


def test_later_events_of_a_step_replace_earlier_ones(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, LOSS_SUM, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        event = {"event": "dev", "step": 400, "metrics": {"sst": 0.111}, "best": True}
        file.write(json.dumps(event) + "\n")
    row = row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")
    assert row["SST accuracy"] == "0.111 (1 seed) │ -"
    assert row["STS Pearson r"] == "- │ -"


def test_the_best_checkpoint_counts_not_the_last(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, LOSS_SUM, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        event = {"event": "dev", "step": 500, "metrics": {"sst": 0.111}, "best": False}
        file.write(json.dumps(event) + "\n")
    assert row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")["SST accuracy"] == "0.430 (1 seed) │ -"


def test_not_a_number_is_shown_as_such(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD, 0, metrics={**METRICS, "sts": math.nan})
    write_run(tmp_path, PCGRAD, 1)
    row = row_of(markdown([tmp_path]), f"`{PCGRAD}`")
    assert row["STS Pearson r"] == "NaN (2 seeds) │ 0.864 │ -"
    assert row["mean"] == "NaN (2 seeds) │ 0.739 │ -"
    assert row["SST accuracy"] == "0.430 ± 0.000 (2 seeds) │ 0.500 │ -0.070"


def test_losses_and_cosines_that_diverged_are_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path, PCGRAD, num_steps=30)
    broken = {
        "event": "train",
        "losses": {"sst": math.nan, "quora": math.inf, "sts": None},
        "cosines": {"sst~quora": math.nan},
        "conflict_rate": {"sst~quora": math.nan},
    }
    write_events(folder, [{**broken, "step": step} for step in (10, 20)])
    assert "- │" in row_of(report([tmp_path]), f"`{PCGRAD}`")["SST accuracy"]
    assert png_size(tmp_path / "plots/training-losses.png")


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_run_without_any_event(
    markdown: Callable[..., str], tmp_path: Path, content: str | None
) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_text(content)
    text = markdown([tmp_path])
    assert row_of(text, f"`{LOSS_SUM}`")["seeds"] == "0 (unfinished, step 0)"
    assert "plots/" not in text


def test_one_task_and_one_dev_point(tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, metrics={"sst": 0.4}, num_devs=1, num_steps=10)
    row = row_of(report([tmp_path]), f"`{LOSS_SUM}`")
    assert row["SST accuracy"] == row["mean"] == row["normalised"] == "0.400 (1 seed) │ -"
    assert png_size(tmp_path / "plots/learning-curves.png")


def test_degenerate_predictions_are_marked(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, COSINE_PCGRAD)
    (folder / "predictions").mkdir()
    for task, rows in {
        "quora": ("a,1,0", "b,1,1"),
        "sst": ("a,1,0", "b,2,2"),
        "sts": ("a",),
    }.items():
        text = "\n".join(["id,prediction,label", *rows])
        (folder / f"predictions/{task}-dev.csv").write_text(text)
    text = markdown([tmp_path])
    row = row_of(text, f"`{COSINE_PCGRAD}`")
    assert row["Quora accuracy"] == "0.800 (1 seed) † │ 0.375 │ +0.425"
    assert row["SST accuracy"] == "0.430 (1 seed) │ 0.518 │ -0.088"
    assert row["STS Pearson r"] == "0.830 (1 seed) │ 0.171 │ +0.659"
    assert (
        f"† Degenerate: the Quora predictions of `{COSINE_PCGRAD}` are all one value or not "
        "finite." in text
    )
    write_run(tmp_path, COSINE_PCGRAD, 1)
    assert f"the Quora predictions of `{COSINE_PCGRAD}` (seed 0) are all" in markdown([tmp_path])


def test_what_a_run_said_of_its_predictions_outlives_them(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    """A record without predictions/, such as one that was put under version control."""
    path = write_run(tmp_path, COSINE_PCGRAD) / "metrics.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    best = [event for event in events if event.get("best")]
    best[0]["degenerate"], best[-1]["degenerate"] = ["sts"], ["quora"]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    row = row_of(markdown([tmp_path]), f"`{COSINE_PCGRAD}`")
    assert "†" in row["Quora accuracy"]
    assert "†" not in row["SST accuracy"] + row["STS Pearson r"]


def test_other_settings_make_another_row(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "a", LOSS_SUM, 0, encoder="tiny")
    write_run(tmp_path / "b", LOSS_SUM, 0, encoder="large", metrics=dict.fromkeys(METRICS, 0.9))
    text = markdown([tmp_path])
    assert row_of(text, f"`{LOSS_SUM} #1`")["SST accuracy"].startswith("0.430 (1 seed)")
    assert row_of(text, f"`{LOSS_SUM} #2`")["SST accuracy"].startswith("0.900 (1 seed)")
    assert f"`{LOSS_SUM} #2`: Encoder `large`," in text


def test_a_seed_counts_once(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "a", LOSS_SUM, 0, finished=False, metrics=dict.fromkeys(METRICS, 0.9))
    folder = write_run(tmp_path / "b", LOSS_SUM, 0)
    again = write_run(tmp_path / "c", LOSS_SUM, 0, metrics=dict.fromkeys(METRICS, 0.9))
    text = markdown([tmp_path / "a", tmp_path / "b", tmp_path / "c", folder], tmp_path / "out")
    assert row_of(text, f"`{LOSS_SUM}`")["SST accuracy"] == "0.430 (1 seed) │ -"
    assert f"Not counted: `{again}` (its seed is there twice)." in text


def test_deviations_are_numbered_once(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, deviations=["pooling set to mean (recipe: cls)", "Other data."])
    write_run(tmp_path, PCGRAD, deviations=["Other data.", "stages.0.lr set to 1 (recipe: 2)"])
    write_run(tmp_path, COSINE, deviations=[], encoder="bert-base-uncased", max_steps=None)
    text = markdown([tmp_path])
    found = [line for line in text.splitlines() if line.partition(".")[0].isdecimal()]
    assert found == [
        "1. encoder: small-encoder in place of BERT base (bert-base-uncased)",
        "2. budget: at most 400 optimizer steps (--max-steps)",
        "3. pooling set to mean (recipe: cls)",
        "4. Other data.",
        "5. stages.0.lr set to 1 (recipe: 2)",
        "6. lr = 1e-05",
        "7. pooling = cls",
    ]
    # What was set to another value is assumed no longer.
    assert row_of(text, f"`{LOSS_SUM}`")["deviations"] == "1-4, 6"
    assert row_of(text, f"`{PCGRAD}`")["deviations"] == "1, 2, 4, 5, 7"
    assert row_of(text, f"`{COSINE}`")["deviations"] == "6, 7"


def test_data_budget_and_precision_are_deviations(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    sizes = {"sst": 1101, "quora": 1999, "sts": 863}
    folder = write_run(
        tmp_path,
        PCGRAD,
        examples=sizes,
        scale=0.05,
        precision="bf16",
        encoder="/checkpoints/bert-base-uncased",
        max_steps=None,
        deviations=[],
    )
    with (folder / "metrics.jsonl").open("a") as file:
        for task, number in (("sst", 8544), ("quora", 141_506), ("sts", 600)):
            event = {"event": "data", "task": task, "split": "train", "examples": number}
            file.write(json.dumps(event) + "\n")
    text = markdown([tmp_path])
    assert [line for line in text.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")] == [
        "1. Quora dev split: 1,999 examples, not 20,212 or 40,429",
        "2. STS train split: 600 examples, not 6,040",
        "3. budget: all epochs shortened by 0.05 (--scale)",
        "4. precision: bf16 in place of fp32",
        "5. lr = 1e-05",
    ]


def test_a_scale_is_said_above_every_table(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD, scale=0.02)
    text = markdown([tmp_path])
    assert len(tables_of(text)) == 4
    assert text.count("**--scale 0.02**: the epochs of all rows are shortened") == 4
    write_run(tmp_path, LOSS_SUM)
    text = markdown([tmp_path])
    assert f"**--scale 0.02**: the epochs of `{PCGRAD}` are shortened by that factor." in text


def test_machine_versions_dates_and_commands_are_told(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, LOSS_SUM, 11711)
    text = markdown([tmp_path])
    for told in (
        "A processor with 2 threads",
        "no GPU",
        "torch 2.13.0",
        "Python 3.11.7",
        "at commit 0123abc",
        "2025-01-02T03:04:05+00:00",
        f"python -m benchmarks.multitask_bert run {LOSS_SUM} --out 'a b'",
        "lr = 1e-05",
        "pooling = cls",
    ):
        assert told in text
    assert row_of(text, f"`{LOSS_SUM}`")["seeds"] == "11711"


def test_seeds_are_in_the_order_of_numbers(markdown: Callable[..., str], tmp_path: Path) -> None:
    for seed in (10, 2):
        write_run(tmp_path, LOSS_SUM, seed)
    assert row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")["seeds"] == "2, 10"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"recipe": {', "Expecting property name"),
        ("[1]", "found list"),
        ("{}", "recipe's id and a seed"),
        ("\xff", "JSON"),
    ],
)
def test_a_broken_config_is_named(
    markdown: Callable[..., str], tmp_path: Path, content: str, found: str
) -> None:
    broken = write_run(tmp_path, LOSS_SUM) / "config.json"
    broken.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=found) as caught:
        markdown([tmp_path])
    assert str(caught.value).startswith(f"{broken}: must ")
    assert "\n" not in str(caught.value)
    write_run(tmp_path, PCGRAD)
    text = markdown([tmp_path])
    assert f"**Not read**, and missing below: {caught.value}" in text
    assert row_of(text, f"`{PCGRAD}`")


def test_the_config_of_a_checkpoint_is_no_run(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    (folder / "state").mkdir()
    (folder / "state/config.json").write_text("{")
    (tmp_path.parent / "config.json").write_text("{")
    assert "Not read" not in markdown([tmp_path])
    assert "Not read" not in markdown([folder], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "found"), [("empty", "config.json, found none"), ("no", "folder")]
)
def test_no_runs(markdown: Callable[..., str], tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=found) as caught:
        markdown([tmp_path / name])
    assert str(caught.value).startswith(f"{tmp_path / name}: must ")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    with pytest.raises(ValueError, match="no directory"):
        markdown([])


def test_neither_torch_nor_a_window_is_needed(tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD)
    code = (
        "import sys; from pathlib import Path;"
        "from benchmarks.multitask_bert.report.build import report;"
        "assert 'matplotlib' not in sys.modules, 'imported before a plot is drawn';"
        "report([Path(sys.argv[1])]);"
        "print(sorted({'torch', 'matplotlib.pyplot', 'gradsurgery'} & set(sys.modules)))"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
