"""Prediction files made up here against the examples that they must be joined with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.multitask_bert.errors.outcomes import Outcomes, read_outcomes
from benchmarks.multitask_bert.records.rows import find_runs

PAIRS = {
    "a1": ("The mayor of Lima spoke.", "A mayor spoke.", 4.2),
    "a2": ("Two dogs bark.", "It rains in Lima today.", 0.0),
    "a3": ("He didn't wait.", "He waited.", 1.8),
}
PREDICTIONS = {"a1": "3.9", "a2": "0.5", "a3": "2.8"}
END = {"event": "end", "step": 7, "metrics": {"sts": 0.9}}


def write_data(folder: Path, pairs: Mapping[str, tuple[str, str, float]] = PAIRS) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [f"{id}\t{first}\t{second}\t{label}" for id, (first, second, label) in pairs.items()]
    text = "\n".join(["id\tsentence1\tsentence2\tsimilarity", *rows, ""])
    for split in ("train", "dev"):
        (folder / f"sts-{split}.csv").write_text(text)
    return folder


def write_run(
    folder: Path,
    data: Path,
    predictions: Mapping[str, str] = PREDICTIONS,
    events: tuple[Mapping[str, Any], ...] = (END,),
    **config: Any,
) -> Path:
    (folder / "predictions").mkdir(parents=True)
    recipe = {"id": "one/two", "tasks": ["sts"]}
    content = {"recipe": recipe, "seed": 3, "data": str(data), "encoder": "tiny", **config}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    rows = [f"{id},{p},{PAIRS[id][2]:g}" if id in PAIRS else id for id, p in predictions.items()]
    (folder / "predictions/sts-dev.csv").write_text("\n".join(["id,prediction,label", *rows, ""]))
    return folder


def read(folder: Path, data: str | None = None) -> list[Outcomes]:
    (run,), _ = find_runs([folder])
    return read_outcomes(run, data)


def test_predictions_find_their_texts_in_any_order(tmp_path: Path) -> None:
    shuffled = {id: PREDICTIONS[id] for id in ("a3", "a1", "a2")}
    (found,) = read(write_run(tmp_path / "run", write_data(tmp_path / "data"), shuffled))
    assert [example.id for example in found.examples] == ["a1", "a2", "a3"]
    assert found.examples[2].texts == ("he didn 't wait .", "he waited .")
    assert found.predictions.tolist() == [3.9, 0.5, 2.8]
    assert found.labels.tolist() == [4.2, 0.0, 1.8]
    assert found.errors == pytest.approx([-0.3, 0.5, 1.0])
    assert found.metric == pytest.approx(np.corrcoef([3.9, 0.5, 2.8], [4.2, 0.0, 1.8])[0, 1])
    assert found.metric_error == pytest.approx((1 - found.metric**2) / np.sqrt(2))
    assert not found.is_degenerate


def test_background_is_learned_from_the_training_files(tmp_path: Path) -> None:
    (found,) = read(write_run(tmp_path / "run", write_data(tmp_path / "data")))
    assert found.background.names == {"lima"}
    assert {"mayor", "didn't", "two"} <= found.background.seen
    assert found.background.num_pieces is None


def test_word_pieces_are_those_of_the_encoder(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    vocabulary = {"[UNK]": 0, "ma": 1, "##yor": 2, "dog": 3}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = write_run(tmp_path / "run", write_data(tmp_path / "data"), encoder=str(tmp_path))
    (found,) = read(run)
    num_pieces = found.background.num_pieces
    assert num_pieces is not None
    assert (num_pieces("mayor"), num_pieces("dog")) == (2, 1)


def test_data_that_moved_are_given(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"config\.json: data must be a folder that is there"):
        read(run)
    assert len(read(run, str(write_data(tmp_path / "here")))) == 1


def test_ids_that_come_twice_keep_their_order(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for split in ("train", "dev"):
        path = data / f"sts-{split}.csv"
        path.write_text(path.read_text().replace("a2", "a1"))
    run = write_run(tmp_path / "run", data)
    path = run / "predictions/sts-dev.csv"
    path.write_text(path.read_text().replace("a2", "a1"))
    (found,) = read(run)
    assert found.predictions.tolist() == [3.9, 0.5, 2.8]


def test_largest_come_first_and_of_equals_the_earlier(tmp_path: Path) -> None:
    (found,) = read(write_run(tmp_path / "run", write_data(tmp_path / "data")))
    among = np.array([True, True, True])
    shown = found.largest(np.array([1.0, 2.0, 1.0]), among, 2)
    assert shown == [
        ("predicted 0.50, label 0.00, id a2", found.examples[1].texts),
        ("predicted 3.90, label 4.20, id a1", found.examples[0].texts),
    ]
    assert found.largest(np.ones(3), ~among, 2) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("a1,", "b1,"), r"sts-dev.csv: line 2: id must be that of a dev example .* found 'b1'"),
        (("a2,", "a1,"), r"sts-dev.csv: line 3: id must .* found 'a1' once more"),
        (("a2,0.5,0\n", ""), r"sts-dev.csv: must have each of the 3 .* none with id 'a2' and 0"),
        ((",4.2", ",4.3"), r"sts-dev.csv: line 2: label must be .*, 4.2, found '4.3'"),
        ((",4.2", ","), r"sts-dev.csv: line 2: label must be .*, 4.2, found ''"),
        ((",3.9,", ",high,"), r"sts-dev.csv: line 2: prediction must be a number, found 'high'"),
        ((",3.9,", ","), r"sts-dev.csv: line 2: must have 3 fields, found 2"),
        (("id,prediction", "id,score"), r"sts-dev.csv: must begin with id,prediction,label, found"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    tmp_path: Path, damage: tuple[str, str], message: str
) -> None:
    run = write_run(tmp_path / "run", write_data(tmp_path / "data"))
    path = run / "predictions/sts-dev.csv"
    before = path.read_text()
    path.write_text(before.replace(*damage, 1))
    assert path.read_text() != before
    with pytest.raises(ValueError, match=message) as caught:
        read(run)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"", b'id,prediction,label\n"a'])
def test_files_that_are_no_predictions_are_refused(tmp_path: Path, content: bytes | None) -> None:
    run = write_run(tmp_path / "run", write_data(tmp_path / "data"))
    path = run / "predictions/sts-dev.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sts-dev\.csv: .*run the recipe again$"):
        read(run)


def test_a_class_must_be_one_of_the_task(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev"):
        text = "id\tsentence\tsentiment\ns1\tgood\t4\ns2\tbad\t0\n"
        (data / f"ids-sst-{split}.csv").write_text(text)
    run = write_run(tmp_path / "run", data, recipe={"id": "one", "tasks": ["sst"]})
    path = run / "predictions/sst-dev.csv"
    for prediction in ("5", "-1", "2.5", "nan"):
        path.write_text(f"id,prediction,label\ns1,4,4\ns2,{prediction},0\n")
        with pytest.raises(
            ValueError, match=f"line 3: prediction must be a class up to 4, found '{prediction}'"
        ):
            read(run)
    path.write_text("id,prediction,label\ns1,4,4\ns2,1,0\n")
    (found,) = read(run)
    assert found.num_classes == 5
    assert found.metric == 0.5


@pytest.mark.parametrize("events", [(), ({"event": "train", "step": 7},)])
def test_an_unfinished_run_is_refused(tmp_path: Path, events: tuple[Any, ...]) -> None:
    run = write_run(tmp_path / "run", write_data(tmp_path / "data"), events=events)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: must have an end event"):
        read(run)


def test_reading_takes_no_torch() -> None:
    code = "import benchmarks.multitask_bert.errors.analysis, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
