"""The report against numbers worked out by hand from run folders made up here."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.multitask_bert.report import OVERALL, report

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INVENTORY = Path(__file__).parents[1] / "../shared/reference/results.json"
LOSS_SUM = "smet-walker/general-linear-loss-sum"
COSINE = "smet-walker/v1-dropout-0.3"
PCGRAD = "smet-walker/v2-dropout-0.3"
COSINE_PCGRAD = "smet-walker/v3-cosine-pcgrad"
CONSTANTS = {"sst": 0.26, "quora": 0.62, "sts": 0.0}
METRICS = {"sst": 0.43, "quora": 0.80, "sts": 0.83}
PLOTS = ("learning-curves", "training-losses", "conflict-rates", "cosines", "methods")


def write_run(
    root: Path,
    recipe: str = LOSS_SUM,
    seed: int = 0,
    *,
    metrics: Mapping[str, float] = METRICS,
    num_steps: int = 400,
    finished: bool = True,
    conflicts: bool = True,
    num_devs: int = 4,
    examples: Mapping[str, int] | None = None,
    **config: Any,
) -> Path:
    """Make up a run whose metrics rise to the given ones."""
    folder = root / recipe / f"seed-{seed}"
    folder.mkdir(parents=True)
    method = "pcgrad" if recipe in (PCGRAD, COSINE_PCGRAD) else "loss-sum"
    pairs = {
        "quora": "joint-raw-ids",
        "sts": "siamese-cos" if recipe in (COSINE, COSINE_PCGRAD) else "joint-raw-ids",
    }
    content = {
        "version": "0.1.0",
        "recipe": {
            "id": recipe,
            "description": f"about {recipe}",
            "tasks": list(metrics),
            "pairs": pairs,
            "stages": [{"epochs": 10, "method": method, "reduction": "mean"}],
            "assumed": ["stages.0.lr", "pooling"],
        },
        "deviations": ["The encoder is a smaller one."],
        "data": "some/folder",
        "data_notice": "SST, Quora and STS from some/folder",
        "encoder": "small-encoder",
        "seed": seed,
        "max_steps": 400,
        "device": "cpu",
        "precision": "fp32",
        "command": ["python", "-m", "benchmarks.multitask_bert", "run", recipe, "--out", "a b"],
    }
    environment = {
        "python": "3.11.7",
        "torch": "2.13.0",
        "platform": "Linux",
        "cpu": "A processor",
        "num_threads": 2,
        "gpu": None,
        "git_commit": "0123abc",
        "date": "2025-01-02T03:04:05+00:00",
    }
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    (folder / "environment.json").write_text(json.dumps(environment))
    events = make_events(recipe, seed, metrics, num_steps, num_devs, conflicts, examples)
    if finished:
        events.append(
            {
                "event": "end",
                "step": num_steps,
                "epochs": num_devs,
                "best_epoch": num_devs,
                "metrics": metrics,
                "train_seconds": 570.0,
                "samples_per_second": 30.0 + seed,
                "eval_samples_per_second": 100.0,
            }
        )
    write_events(folder, events)
    return folder


def make_events(
    recipe: str,
    seed: int,
    metrics: Mapping[str, float],
    num_steps: int,
    num_devs: int,
    conflicts: bool,
    examples: Mapping[str, int] | None,
) -> list[dict[str, Any]]:
    random = np.random.default_rng([seed, *recipe.encode()])
    tasks = list(metrics)
    pairs = [f"{a}~{b}" for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    centres = {pair: random.normal(0.02, 0.05) for pair in pairs}
    met = dict.fromkeys(pairs, 0)
    sizes = examples or {"sst": 1101, "quora": 20212, "sts": 863}
    events: list[dict[str, Any]] = [
        {
            "event": "data",
            "task": task,
            "split": "dev",
            "examples": sizes[task],
            "skipped": 0,
            "constant_metric": CONSTANTS[task],
        }
        for task in tasks
    ]
    dev_steps = [round((i + 1) * num_steps / num_devs) for i in range(num_devs)]
    for count, step in enumerate(range(10, num_steps + 1, 10), start=1):
        cosines = {pair: float(random.normal(centres[pair], 0.15)) for pair in pairs}
        for pair in pairs:
            met[pair] += cosines[pair] < 0
        train: dict[str, Any] = {
            "event": "train",
            "stage": 0,
            "epoch": 1,
            "step": step,
            "seconds": 1.5 * step,
            "samples": 48 * step,
            "losses": {
                task: 0.4 + math.exp(-step / 150) + 0.1 * float(random.normal()) for task in tasks
            },
        }
        if conflicts:
            train["cosines"] = cosines
            train["conflict_rate"] = {pair: met[pair] / count for pair in pairs}
        events.append(train)
        if step in dev_steps:
            share = 1 - 0.6 * math.exp(-4 * step / num_steps) + 0.6 * math.exp(-4)
            reached = {
                task: CONSTANTS[task] + share * (metrics[task] - CONSTANTS[task]) for task in tasks
            }
            events.append(
                {
                    "event": "dev",
                    "stage": 0,
                    "epoch": dev_steps.index(step) + 1,
                    "step": step,
                    "seconds": 1.5 * step,
                    "metrics": reached,
                    "best": True,
                    "eval_seconds": 2.0,
                    "eval_samples": 150,
                }
            )
    return events


def write_events(folder: Path, events: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(text)


@pytest.fixture
def markdown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Give ``report`` without its plots, which take a second or two."""
    monkeypatch.setattr("benchmarks.multitask_bert.plots.PLOTS", {})
    return report


def row_of(text: str, name: str, table: int = 0) -> dict[str, str]:
    """Give the cells of the row that begins with a name, by column."""
    tables = [
        [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        for block in text.split("\n\n")
        if block.startswith("|")
    ]
    header, _, *rows = tables[table]
    (row,) = [row for row in rows if row[0] == name]
    return dict(zip(header, row, strict=True))


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

    def cell(numbers: Sequence[float], published: str) -> str:
        mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
        return f"{mean:.3f} ± {deviation:.3f} (3 seeds) │ {published}"

    means = [sum(v[i] for v in values.values()) / 3 for i in range(3)]
    normalised = [
        (values["sst"][i] + values["quora"][i] + (values["sts"][i] + 1) / 2) / 3 for i in range(3)
    ]
    assert row["method"] == "PCGrad"
    assert row["seeds"] == "0, 1, 2"
    assert row["SST accuracy"] == cell(values["sst"], "0.500") == "0.440 ± 0.046 (3 seeds) │ 0.500"
    assert row["Quora accuracy"] == cell(values["quora"], "0.853")
    assert row["STS Pearson r"] == cell(values["sts"], "0.864")
    assert row["mean"] == cell(means, "0.739")
    assert row["normalised"] == cell(normalised, "0.762")
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


PUBLISHED = tomllib.loads(
    (Path(__file__).parents[1] / "benchmarks/multitask_bert/published.toml").read_text()
)


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
    assert row["SST accuracy"].endswith("│ 0.500")
    assert row["STS Pearson r"].endswith("│ 0.864")
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
    row = row_of(markdown([tmp_path]), f"`{PCGRAD}`", table=1)
    deviation = statistics.stdev([0.2, -0.4, -0.1])
    assert row["tasks"] == "SST and Quora"
    assert row["cosine ± std over logged steps"] == f"-0.100 ± {deviation:.3f}"
    assert row["share of steps in conflict ± std over seeds"] == "0.750"


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
    assert row["SST accuracy"] == "0.430 (1 seed) │ 0.500"
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
    assert row["STS Pearson r"] == row["mean"].replace("0.739", "0.864") == "NaN (2 seeds) │ 0.864"
    assert row["SST accuracy"] == "0.430 ± 0.000 (2 seeds) │ 0.500"


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
    assert row["Quora accuracy"] == "0.800 (1 seed) † │ 0.375"
    assert row["SST accuracy"] == "0.430 (1 seed) │ 0.518"
    assert row["STS Pearson r"] == "0.830 (1 seed) │ 0.171"
    assert f"† Degenerate: the Quora predictions of `{COSINE_PCGRAD}`, seed 0," in text


def test_other_settings_make_another_row(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "a", LOSS_SUM, 0, encoder="tiny")
    write_run(tmp_path / "b", LOSS_SUM, 0, encoder="large", metrics=dict.fromkeys(METRICS, 0.9))
    text = markdown([tmp_path])
    assert row_of(text, f"`{LOSS_SUM} #1`")["SST accuracy"].startswith("0.430 (1 seed)")
    assert row_of(text, f"`{LOSS_SUM} #2`")["SST accuracy"].startswith("0.900 (1 seed)")
    assert f"`{LOSS_SUM} #2`: Encoder large," in text


def test_a_seed_counts_once(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "a", LOSS_SUM, 0, finished=False, metrics=dict.fromkeys(METRICS, 0.9))
    folder = write_run(tmp_path / "b", LOSS_SUM, 0)
    again = write_run(tmp_path / "c", LOSS_SUM, 0, metrics=dict.fromkeys(METRICS, 0.9))
    text = markdown([tmp_path / "a", tmp_path / "b", tmp_path / "c", folder], tmp_path / "out")
    assert row_of(text, f"`{LOSS_SUM}`")["SST accuracy"] == "0.430 (1 seed) │ -"
    assert f"Not counted: `{again}` (its seed is there twice)." in text


def test_deviations_are_numbered_once(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, deviations=["Other pooling.", "Other data."])
    write_run(tmp_path, PCGRAD, deviations=["Other data.", "Fewer steps."])
    write_run(tmp_path, COSINE, deviations=[])
    text = markdown([tmp_path])
    assert "\n\n1. Other pooling.\n2. Other data.\n3. Fewer steps.\n\n" in text
    assert row_of(text, f"`{LOSS_SUM}`")["deviations"] == "1, 2"
    assert row_of(text, f"`{PCGRAD}`")["deviations"] == "2, 3"
    assert row_of(text, f"`{COSINE}`")["deviations"] == "none"


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
        "stages.0.lr, pooling",
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
    assert f"**Not read**, and missing above: {caught.value}" in text
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
        "import sys; from pathlib import Path; from benchmarks.multitask_bert.report import report;"
        "assert 'matplotlib' not in sys.modules, 'imported before a plot is drawn';"
        "report([Path(sys.argv[1])]);"
        "print(sorted({'torch', 'matplotlib.pyplot', 'gradsurgery'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
