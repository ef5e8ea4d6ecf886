"""Prediction files against the starter code's form, byte for byte, and against the run's own."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from benchmarks.multitask_bert.__main__ import main
from benchmarks.multitask_bert.predictions import prediction_file

RECIPE = "smet-walker/v1-dropout-0.3"


@pytest.mark.parametrize(
    ("task", "predictions", "expected"),
    [
        ("sst", [3.0, 0.0], "id \t Predicted_Sentiment \na , 3 \nb , 0 \n"),
        ("quora", [1.0, 0.0], "id \t Predicted_Is_Paraphrase \na , 1.0 \nb , 0.0 \n"),
        ("sts", [2.5, 1 / 3], "id \t Predicted_Similiary \na , 2.5 \nb , 0.33333334 \n"),
    ],
)
def test_the_form_of_a_file(task, predictions, expected):
    assert prediction_file(task, ["a", "b"], predictions) == expected


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    assert main(["run", RECIPE, "--max-steps", "2", "--out", str(out)]) == 0
    return out / RECIPE / "seed-11711"


def rows_of(path: Path) -> list[tuple[str, float]]:
    lines = path.read_text().splitlines()[1:]
    return [(id, float(value)) for id, value in (line.split(" , ") for line in lines)]


def test_a_finished_run(finished, tmp_path, capsys):
    assert main(["predict", str(finished), "--out", str(tmp_path)]) == 0
    names = [
        f"{task}-{split}-output.csv" for task in ("sst", "para", "sts") for split in ("dev", "test")
    ]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == names
    for ours, name in (("sst", "sst"), ("quora", "para"), ("sts", "sts")):
        with (finished / f"predictions/{ours}-dev.csv").open() as file:
            recorded = [(row["id"], float(row["prediction"])) for row in csv.DictReader(file)]
        found = rows_of(tmp_path / f"{name}-dev-output.csv")
        assert [id for id, _ in found] == [id for id, _ in recorded]
        for (_, value), (_, expected) in zip(found, recorded, strict=True):
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert len(rows_of(tmp_path / f"{name}-test-output.csv")) == 100


def test_one_split(finished, tmp_path):
    assert main(["predict", str(finished), "--out", str(tmp_path), "--split", "test"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "para-test-output.csv",
        "sst-test-output.csv",
        "sts-test-output.csv",
    ]


def test_what_is_refused(finished, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished)
    lines = (unfinished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (unfinished / "metrics.jsonl").write_text("".join(lines[:-1]))
    for folder, word in ((unfinished, "unfinished"), (tmp_path / "nowhere", "none")):
        out = tmp_path / "out"
        assert main(["predict", str(folder), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(folder) in line
        assert word in line
        assert not out.exists()
    out = tmp_path / "out"
    assert main(["predict", str(finished), "--data", str(tmp_path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ids-sst-dev.csv" in line
    assert not out.exists()
