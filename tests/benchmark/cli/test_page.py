"""The page of your data and recipe against what its commands do, in a copy of the benchmark."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.multitask_bert.__main__ import main
from benchmarks.multitask_bert.data.synthetic import make_corpus, vocabulary
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.tasks import TASKS
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
# Runs every command of a list and says what became of it, in one process.
PROGRAM = """
import json, shlex, sys
from benchmarks.multitask_bert.__main__ import main
for command in json.load(sys.stdin):
    try:
        status = main(shlex.split(command))
    except SystemExit as end:
        status = end.code
    print("status", status, command, flush=True)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """What follows ``python -m benchmarks.multitask_bert``, shortened to be quick."""
    shell = "\n".join(blocks("sh")).replace("\\\n", " ")
    found = re.findall(r"^python -m benchmarks\.multitask_bert (.*)$", shell, re.MULTILINE)
    quick = {"--max-steps 400": "--max-steps 4", "--max-steps 800": "--max-steps 6"}
    quick |= {"--eval-every 100": "--eval-every 2", "--seeds 3": "--seeds 2", "$MINILM": "minilm"}
    for long, short in quick.items():
        found = [command.replace(long, short) for command in found]
    return [command for command in found if command != "fetch data"]  # it takes a network


def write_data(folder: Path) -> None:
    """Writes the files that the page speaks of, test files of one task apart."""
    folder.mkdir()
    tasks = ("sst", "quora", "sts")
    sizes = {(task, split): 48 for task in tasks for split in ("train", "dev", "test")}
    for (task, split), part in make_corpus(sizes=sizes).splits.items():
        spec = TASKS[task]
        rows = [["id", *spec.text_columns, spec.label_column]]
        rows += [[e.id, *e.texts, "" if e.label is None else e.label] for e in part.examples]
        write(folder / spec.files[split], rows)
        if task == "quora" and split != "test":
            texts = [[*e.texts, str(n % 3)] for n, e in enumerate(part.examples)]
            header = ["id", *spec.text_columns, "relation"]
            write(
                folder / f"nli-{split}.csv", [header, *([n, *row] for n, row in enumerate(texts))]
            )


def write(path: Path, rows: list[list[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)


def write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(words), **sizes}))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    encoder = MinBert(EncoderConfig(len(words), 8, 1, 2, 8, max_positions=64))
    tensors = {name: t.clone() for name, t in to_bert_names(encoder.state_dict()).items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy with the page's task in it, after the page's commands, and what they printed."""
    folder = tmp_path_factory.mktemp("copy")
    leave_out = shutil.ignore_patterns("results", "__pycache__", "speed", "accuracy")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=leave_out)
    shutil.copytree(ROOT / "gradsurgery", folder / "gradsurgery", ignore=leave_out)
    tasks = folder / "benchmarks" / "multitask_bert" / "tasks.py"
    (entry,) = blocks("python")
    place = "        for task in (\n"
    text = tasks.read_text(encoding="utf-8")
    assert text.count(place) == 1
    tasks.write_text(text.replace(place, f"{place}{entry.rstrip()},\n"), encoding="utf-8")
    write_data(folder / "data")
    write_checkpoint(folder / "minilm")
    for block in blocks("json"):
        name = {"mine/first": "mine.json", "mine/nli": "nli.json"}[json.loads(block)["id"]]
        assert f"`{name}`" in PAGE
        (folder / name).write_text(block, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        input=json.dumps(commands()),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return folder, ran.stdout + ran.stderr


def test_every_command_does_what_it_is_to(done: tuple[Path, str]) -> None:
    _, said = done
    found = re.findall(r"^status (\S+) (.*)$", said, re.MULTILINE)
    assert [command for _, command in found] == commands()
    assert [command for status, command in found if status != "0"] == [], said


def test_files_to_hand_in(done: tuple[Path, str]) -> None:
    folder, said = done
    runs = folder / "runs"
    names = sorted(path.name for path in (folder / "hand-in").iterdir())
    assert names == ["sst-test-output.csv", "sts-test-output.csv"]
    for run in (runs / "first" / "smet-walker").glob("*/seed-*"):
        assert len(list((run / "hand-in").iterdir())) == 6
    nli = runs / "nli" / "mine" / "nli" / "seed-11711" / "hand-in"
    header, *rows = (nli / "nli-dev-output.csv").read_text().splitlines()
    assert header == "id \t Prediction "
    assert len(rows) == 48
    assert {row.split(" , ")[1].strip() for row in rows} <= {"0", "1", "2"}
    assert "left out: data/nli-test.csv is not there" in said
    assert re.search(r"NLI accuracy \S+, 95 % interval .*constant predictor 0\.333", said)


def test_fields_of_metrics(done: tuple[Path, str]) -> None:
    table = PAGE[PAGE.index("## What a run measures") :]
    documented = set(re.findall(r"`(\w+)`", table))
    events = [
        json.loads(line)
        for path in (done[0] / "runs").rglob("metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert {event["event"] for event in events} == {"data", "train", "dev", "end"}
    assert {name for event in events for name in event} - {"event"} <= documented


def test_every_field_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--fields"]) == 0
    (shown,) = blocks("text")
    assert shown == capsys.readouterr().out


def test_the_layout_of_the_data() -> None:
    for task in TASKS.values():
        (row,) = re.findall(rf"^\| {task.title} \|.*$", PAGE, re.MULTILINE)
        for name in (*task.files.values(), *task.text_columns, task.label_column):
            assert f"`{name}`" in row
