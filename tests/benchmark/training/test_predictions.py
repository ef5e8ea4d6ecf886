"""Prediction files against the starter code's form, byte for byte, and against the run's own."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.multitask_bert.__main__ import main
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.predictions import prediction_file

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


def write_data(folder: Path, *without: str) -> Path:
    """Writes dev and test files of three rows for the run's tasks, but for some."""
    folder.mkdir()
    rows = {
        "sst": "\tid\tsentence\tsentiment\n" + "".join(f"{n}\ts{n}\tgood\t3\n" for n in range(3)),
        "quora": "\tid\tsentence1\tsentence2\tis_duplicate\n0\tq\ta\tb\t1\n",
        "sts": "\tid\tsentence1\tsentence2\tsimilarity\n0\tt\ta\tb\t2.5\n",
    }
    for task, text in rows.items():
        for split in ("dev", "test"):
            if (name := TASKS[task].files[split]) not in without:
                (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_file_that_is_not_there_is_left_out_and_named(finished, tmp_path, capsys):
    data = write_data(tmp_path / "data", "quora-test-student.csv", "sts-dev.csv")
    arguments = ["predict", str(finished), "--data", str(data), "--out"]
    assert main([*arguments, str(tmp_path / "both")]) == 0
    lines = capsys.readouterr().err.splitlines()
    absent = [data / "quora-test-student.csv", data / "sts-dev.csv"]
    assert lines == [f"left out: {path} is not there" for path in absent]
    names = ["para-dev", "sst-dev", "sst-test", "sts-test"]
    found = sorted(path.name for path in (tmp_path / "both").iterdir())
    assert found == [f"{name}-output.csv" for name in names]
    assert main([*arguments, str(tmp_path / "some"), "--split", "test", "--tasks", "sts,sst"]) == 0
    assert not capsys.readouterr().err
    assert len(list((tmp_path / "some").iterdir())) == 2
    for path in (tmp_path / "some").iterdir():
        assert path.read_bytes() == (tmp_path / "both" / path.name).read_bytes()


def test_the_folder_of_several_runs(finished, tmp_path, capsys):
    """Each gets its hand-in files where nothing else is."""
    out = tmp_path / "runs"
    for seed in (1, 2):
        shutil.copytree(finished, out / f"seed-{seed}")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    data = write_data(tmp_path / "data")
    assert main(["predict", str(out), "--data", str(data)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.parent for path in written} == {out / f"seed-{n}" / "hand-in" for n in (1, 2)}
    assert len(written) == 12
    assert {path: path.read_bytes() for path in before} == before
    arguments = ["predict", str(out), "--data", str(data), "--out", str(tmp_path / "there")]
    assert main(arguments) == 0
    for path in written:
        again = tmp_path / "there" / path.relative_to(out).parts[0] / path.name
        assert again.read_bytes() == path.read_bytes()


def test_metrics_on_labelled_rows(finished, tmp_path, capsys):
    """Those of the dev split are the run's own; test files are read with their labels."""
    assert main(["evaluate", str(finished)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"{finished}, dev rows of synthetic:"
    (*_, end) = Record(finished).events()
    for task, line in zip(("sst", "quora", "sts"), lines, strict=True):
        kind = "Pearson r" if task == "sts" else "accuracy"
        assert f"{TASKS[task].title} {kind} {end['metrics'][task]:.3f}, 95 % interval" in line
        low, high = map(float, re.search(r"interval (\S+) to (\S+) \(", line).groups())
        assert low <= end["metrics"][task] <= high
    data = write_data(tmp_path / "data", "quora-test-student.csv")
    arguments = ["evaluate", str(finished), "--data", str(data), "--split", "test"]
    assert main(arguments) == 0
    found = capsys.readouterr()
    assert "(3 examples; constant predictor 1.000)" in found.out
    assert found.err == f"left out: {data / 'quora-test-student.csv'} is not there\n"
    assert main([*arguments, "--tasks", "quora"]) == 2
    assert "must have one of quora-test-student.csv" in capsys.readouterr().err
    assert main([*arguments, "--tasks", "cfimdb"]) == 2
    assert "must be of the run's sst, quora, sts, got 'cfimdb'" in capsys.readouterr().err
    assert main(["evaluate", str(finished), "--split", "test"]) == 2
    assert "must have labels, found none in its test split" in capsys.readouterr().err


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
    assert "must have one of ids-sst-dev.csv, " in line
    assert not out.exists()
    assert main(["predict", str(finished), "--data", str(tmp_path / "no"), "--out", str(out)]) == 2
    assert "must be a folder with the data files, found none" in capsys.readouterr().err
    assert main(["predict", str(finished.parents[1] / "nothing")]) == 2
    assert "must be the folder of a complete run, found none" in capsys.readouterr().err
