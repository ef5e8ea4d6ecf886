"""The files of a run folder against what was written into them, and against writes that fail."""

from __future__ import annotations

import csv
import json
import os
import re
from datetime import datetime, timedelta, timezone

import pytest
import torch

from benchmarks.multitask_bert.records.record import Record, RecordError, write_whole
from benchmarks.multitask_bert.training.environment import environment
from tests.paths import ROOT


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "recipe" / "seed-0")


def refuse(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_write_whole(tmp_path):
    path = tmp_path / "deep" / "below" / "file"
    write_whole(path, b"first")
    write_whole(path, b"second \x00\xff")
    assert path.read_bytes() == b"second \x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")  # what the failure left is not in the way
    assert path.read_bytes() == b"new"


def test_a_first_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    assert not (tmp_path / "file").exists()


def test_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        usual = getattr(os, name)

        def noted(*args, name=name, usual=usual):
            calls.append(name)
            return usual(*args)

        monkeypatch.setattr(os, name, noted)
    write_whole(tmp_path / "file", b"content")
    assert calls[:2] == ["fsync", "replace"]


def test_json_round_trip(record):
    content = {"lr": 1e-5, "text": "naïve “text”\n", "none": None, "list": [1, [2]]}
    assert not record.exists
    record.write_json("config.json", content)
    assert record.exists
    assert record.read_json("config.json") == content
    assert (record.folder / "config.json").read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b'{"seed": 1', id="cut"),
        pytest.param(b'{"seed": "\xff"}', id="not UTF-8"),
        pytest.param(b"[1, 2]", id="not an object"),
    ],
)
def test_damaged_json_is_refused(record, content):
    record.folder.mkdir(parents=True)
    if content is not None:
        (record.folder / "config.json").write_bytes(content)
    with pytest.raises(RecordError, match=re.escape("config.json")) as refused:
        record.read_json("config.json")
    assert "\n" not in str(refused.value)


def test_events_round_trip(record):
    assert list(record.events()) == []
    events = [{"event": "data", "task": "sst"}, {"event": "train", "losses": {"sst": 0.1 + 0.2}}]
    for event in events:
        record.append(event)
    assert list(record.events()) == events
    assert record.metrics_bytes == (record.folder / "metrics.jsonl").stat().st_size


def test_complete_once_it_has_ended(record):
    assert not record.is_complete
    record.append({"event": "dev", "metrics": {}})
    assert not record.is_complete
    record.append({"event": "end", "step": 3})
    assert record.is_complete


@pytest.mark.parametrize("rest", ['{"event": "end", "st', '{"event": "end"}', "\x00\x00"])
def test_a_cut_last_line_is_no_event(record, rest):
    """A process that is killed leaves half of its last line, and it is not taken for a whole."""
    record.append({"event": "train", "step": 10})
    with (record.folder / "metrics.jsonl").open("a") as file:
        file.write(rest)
    assert list(record.events()) == [{"event": "train", "step": 10}]
    assert not record.is_complete


@pytest.mark.parametrize(
    "line", [b"no JSON\n", b"\x00\x00\x00\n", b'"\xff"\n', b"[1]\n", b'{"step": 1}\n']
)
def test_a_damaged_line_is_refused_by_name(record, line):
    record.append({"event": "train", "step": 10})
    with (record.folder / "metrics.jsonl").open("ab") as file:
        file.write(line)
    record.append({"event": "train", "step": 20})
    with pytest.raises(RecordError, match=re.escape("metrics.jsonl")) as refused:
        assert not record.is_complete
    assert "\n" not in str(refused.value)


def test_truncate_forgets_what_came_after(record):
    record.append({"event": "train", "step": 10})
    num_bytes = record.metrics_bytes
    record.append({"event": "train", "step": 20})
    with (record.folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')
    record.truncate(num_bytes)
    assert record.metrics_bytes == num_bytes
    record.append({"event": "train", "step": 21})
    assert [event["step"] for event in record.events()] == [10, 21]


def test_truncate_of_nothing(record):
    record.truncate(0)
    assert record.metrics_bytes == 0
    assert not record.folder.exists()


def test_truncate_never_lengthens(record):
    """Of a record that lost its end there is nothing to cut, and no filling it with zero bytes."""
    record.append({"event": "train", "step": 10})
    before = (record.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RecordError, match=re.escape("metrics.jsonl")):
        record.truncate(len(before) + 5)
    assert (record.folder / "metrics.jsonl").read_bytes() == before


def test_predictions(record):
    rows = [("id-1", 2.0, 3.0), ('with "quotes", and a comma', 0.123456, None), ("ü", -1.5, 0.2)]
    record.write_predictions("sts", "dev", iter(rows))
    path = record.folder / "predictions" / "sts-dev.csv"
    with path.open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    assert header == ["id", "prediction", "label"]
    assert found == [
        ["id-1", "2", "3"],
        ['with "quotes", and a comma', "0.123456", ""],
        ["ü", "-1.5", "0.2"],
    ]


def test_predictions_that_fail_leave_the_old_ones(record):
    record.write_predictions("sst", "dev", [("a", 1.0, 1.0)])
    path = record.folder / "predictions" / "sst-dev.csv"
    before = path.read_bytes()

    def rows():
        yield ("a", 2.0, 1.0)
        raise RuntimeError("the second row cannot be made")

    with pytest.raises(RuntimeError, match="second row"):
        record.write_predictions("sst", "dev", rows())
    assert path.read_bytes() == before


def test_environment():
    found = environment(torch.device("cpu"))
    assert set(found) == {
        "python",
        "torch",
        "platform",
        "cpu",
        "num_threads",
        "gpu",
        "git_commit",
        "date",
    }
    assert found["torch"] == torch.__version__
    assert found["num_threads"] == torch.get_num_threads()
    assert found["gpu"] is None
    assert found["cpu"]
    age = datetime.now(timezone.utc) - datetime.fromisoformat(found["date"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=5)
    assert json.loads(json.dumps(found)) == found


def test_git_commit_is_that_of_the_checkout():
    commit = environment(torch.device("cpu"))["git_commit"]
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    assert re.fullmatch(r"[0-9a-f]{40}", commit)


def test_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment(torch.device("cpu"))["git_commit"] is None
