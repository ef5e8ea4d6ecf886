"""The lines that a terminal shows, and the table of differences, against sums written out here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.multitask_bert.report.build import report
from tests.benchmark.records.made_up_runs import LOSS_SUM, METRICS, PCGRAD, write_run
from tests.benchmark.report.read_tables import tables_of

GAINS = {"small": (0.010, 0.012, 0.011) * 2, "none": (0.03, -0.02, 0.01) * 2}


@pytest.fixture
def lines(markdown: Callable[..., str], tmp_path: Path) -> Callable[[], list[str]]:
    """Give the summary of the runs there, without plots."""
    return lambda: report([tmp_path]).summary.splitlines()


def write_twins(root: Path, gains: Sequence[float], spread: float = 0.1, **config: object) -> None:
    """Make up seeds that differ by far more than the two methods do, in SST."""
    for seed, gain in enumerate(gains):
        base = METRICS["sst"] + spread * seed
        write_run(root, LOSS_SUM, seed, metrics={**METRICS, "sst": base}, **config)
        write_run(root, PCGRAD, seed, metrics={**METRICS, "sst": base + gain}, **config)


def answer_all_alike(root: Path, num_examples: int = 40) -> None:
    """Put predictions on record that every run has in common, so that examples add no error."""
    for folder in root.glob("*/*/seed-*"):
        (folder / "predictions").mkdir()
        for task in METRICS:
            rows = "".join(f"{i},{i % 2},{i % 2}\n" for i in range(num_examples))
            (folder / f"predictions/{task}-dev.csv").write_text(f"id,prediction,label\n{rows}")


SIZES = dict.fromkeys(METRICS, 40)


def test_a_small_difference_is_decided_where_seeds_go_together(
    lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    write_twins(tmp_path, GAINS["small"], examples=SIZES)
    answer_all_alike(tmp_path)
    found = lines()
    assert found[0].startswith("On folder: 2 rows of 12 complete runs. Encoder small-encoder,")
    assert found[1].startswith(f"loss sum ({LOSS_SUM}): mean 0.770 ± 0.062, 6 seeds; ")
    assert found[2].startswith(f"PCGrad ({PCGRAD}): mean 0.774 ± 0.062, 6 seeds; 1.43 s a step")
    assert found[3].startswith(f"PCGrad less loss sum ({PCGRAD}), paired by 6 seeds")
    # Squares of 4e-6 in all over six seeds: 2.571 * sqrt(4e-6 / 5 / 6) = 0.0009.
    assert found[5] == (
        "  SST accuracy +0.011 [+0.010, +0.012] (+0.011 [-0.267, +0.289]): decided: higher"
    )
    assert found[6].startswith("  Quora accuracy +0.000 [+0.000, +0.000]")
    assert found[6].endswith(": not decided")
    assert found[-1] == (
        "Does PCGrad help here? Decided: higher (mean +0.004, anything from +0.003 to +0.004 fits "
        "these seeds)."
    )
    assert len(found) <= 10


def test_chance_is_not_decided(lines: Callable[[], list[str]], tmp_path: Path) -> None:
    write_twins(tmp_path, GAINS["none"])
    assert lines()[-1].startswith(
        "Does PCGrad help here? Not decided (mean +0.002, anything from -"
    )


@pytest.mark.parametrize(
    ("num_seeds", "reason"),
    [(1, "a single seed"), (2, "2 seeds are too few"), (5, "5 seeds are too few")],
)
def test_few_seeds_decide_nothing(
    lines: Callable[[], list[str]], tmp_path: Path, num_seeds: int, reason: str
) -> None:
    write_twins(tmp_path, [0.3] * num_seeds)
    found = lines()
    assert found[-1].startswith(f"Does PCGrad help here? Not decided: {reason} (mean +0.100")
    assert ("SINGLE SEED 0" in found[1]) == (num_seeds == 1)


def test_constant_predictions_decide_nothing(
    lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    write_twins(tmp_path, GAINS["small"])
    path = tmp_path / PCGRAD / "seed-1/predictions/sts-dev.csv"
    path.parent.mkdir()
    path.write_text("id,prediction,label\na,1,2\nb,1,4\n")
    assert "Not decided: constant STS predictions" in lines()[-1]


def test_runs_without_a_twin_have_nothing_to_compare(
    lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    write_run(tmp_path, LOSS_SUM)
    assert lines()[-1] == (
        "Does it help here? Nothing to compare: no two rows differ in one setting alone."
    )


def test_many_rows_are_counted(lines: Callable[[], list[str]], tmp_path: Path) -> None:
    for pooling in ("cls", "mean", "pooler"):
        for folder in ("a", "b"):
            root = tmp_path / pooling / folder
            made = write_run(root, LOSS_SUM if folder == "a" else PCGRAD)
            config = json.loads((made / "config.json").read_text())
            config["recipe"]["pooling"] = pooling
            (made / "config.json").write_text(json.dumps(config))
    found = lines()
    assert found[1] == (
        "Methods: loss sum (3), PCGrad (3); 1 seed a row (A SINGLE SEED DECIDES NOTHING)."
    )
    assert found[2].startswith("Cost: 1.43 s to 1.43 s a step;")
    assert found[-1] == "Does it help here? Of 3 pairs, not decided: 3."
    assert len(found) <= 11


def test_memory_is_told_where_it_is_on_record(
    lines: Callable[[], list[str]], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    *events, end = (folder / "metrics.jsonl").read_text().splitlines()
    end = json.dumps({**json.loads(end), "peak_bytes": 1_500_000_000})
    (folder / "metrics.jsonl").write_text("\n".join([*events, end]) + "\n")
    assert lines()[1].endswith("1.43 s a step, watched; peak memory 1.50 GB")


def test_both_kinds_of_difference_stand_in_the_table(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_twins(tmp_path, GAINS["small"], examples=SIZES)
    answer_all_alike(tmp_path)
    text = markdown([tmp_path])
    (row,) = next(rows for rows in tables_of(text) if "differ in" in rows[0])
    assert list(row.values())[:2] == [f"`{PCGRAD}` │ `{LOSS_SUM}`", "PCGrad, not loss sum"]
    assert row["SST accuracy"] == (
        "+0.011 [+0.010, +0.012] │ +0.011 [-0.267, +0.289] │ decided: higher"
    )
    for told in ("**Paired**: runs of one seed share", "**Unpaired**: the runs of the two rows"):
        assert told in text
    assert text.index("Does PCGrad help here?") < text.index("## Results beside")


def test_runs_that_are_no_pair_are_named(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_twins(tmp_path, GAINS["small"])
    path = tmp_path / PCGRAD / "seed-2/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "0.0.9"}))
    text = markdown([tmp_path])
    assert f"No pair: `{PCGRAD}` and `{LOSS_SUM}`, seed 2: version 0.0.9 and 0.1.0." in text


def test_no_path_of_a_machine_is_in_a_title(tmp_path: Path) -> None:
    write_twins(tmp_path / "runs", GAINS["small"], data="/home/somebody/course-data")
    made = report([tmp_path / "runs"])
    assert "somebody" not in made.markdown
    page = made.page.read_text(encoding="utf-8")
    assert "<title>Multi-task BERT on course-data</title>" in page
    assert all("somebody" not in path.read_text() for path in made.page.parent.glob("plots/*.svg"))
