"""Damaged and hostile data files, checkpoints and run folders against the rule that every one of
them ends in success or in one clear line: no traceback, no hang, no memory beyond the bound."""

from __future__ import annotations

import gc
import json
import os
import shutil
import struct
import time
import tracemalloc
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.multitask_bert.data import files as data
from benchmarks.multitask_bert.data.files import DataError, read_split
from benchmarks.multitask_bert.data.synthetic import make_corpus, vocabulary
from benchmarks.multitask_bert.model.bert.files import CheckpointError
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.bert.weights import load_encoder
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.records.record import RecordError
from benchmarks.multitask_bert.report import build as report
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.checkpoint import load_state, save_state
from tests.reliability.commands import SIZES, THREE, Commands
from tests.reliability.mutations import changed, damaged, text_of

RECIPE = "smet-walker/v2-dropout-0.3"
MEMORY = 3 * 2**29  # bytes beyond those of a process that has imported everything
SECONDS = 60  # of processor time


def assert_one_line(message: str, *words: str) -> None:
    assert message.strip()
    assert message.splitlines() == [message]
    assert len(message) < 1500
    for word in words:
        assert word in message


def assert_handled(commands: Commands, *arguments: str | Path) -> int:
    """Success, or one line and status 2, within the bounds."""
    status, process = commands.run(*arguments, memory=MEMORY, seconds=SECONDS)
    assert status in (0, 2), process.err
    if status == 2:
        assert_one_line(process.err.removesuffix("\n"), "error: ")
    return status


# Data files.


def write_data(folder: Path) -> Path:
    folder.mkdir()
    corpus = make_corpus(sizes=SIZES)
    for task in THREE:
        for name in ("train", "dev"):
            split = corpus.splits[task, name]
            columns = TASKS[task].text_columns
            lines = ["\t".join(["", "id", *columns, TASKS[task].label_column])]
            for number, example in enumerate(split.examples):
                lines.append(
                    "\t".join([str(number), example.id, *example.texts, f"{example.label:g}"])
                )
            lines[2] += "\n"  # an empty line, which is no row
            (folder / TASKS[task].files[name]).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "files")


@pytest.mark.parametrize("task", THREE)
def test_damaged_data_files(data_folder, tmp_path, task):
    """10,000 of them over three tasks, as the reader sees them."""
    draw = Random(f"data {task}")
    name = TASKS[task].files["train"]
    whole = (data_folder / name).read_bytes()
    num_read = num_refused = 0
    started = time.process_time()
    for _ in range(3334):
        (tmp_path / name).write_bytes(damaged(whole, draw))
        try:
            split = read_split(tmp_path, task, "train")
        except DataError as error:
            assert_one_line(str(error), str(tmp_path / name), "; ")
            num_refused += 1
        else:
            for example in split.examples:
                assert TASKS[task].label_min <= example.label <= TASKS[task].label_max
                assert len(example.texts) == len(TASKS[task].text_columns)
            num_read += 1
    assert min(num_read, num_refused) > 300
    assert time.process_time() - started < 60


def test_damaged_data_files_through_the_command(commands, data_folder, tmp_path, bert):
    draw = Random(7)
    found = []
    for number in range(12):
        folder = Path(shutil.copytree(data_folder, tmp_path / str(number)))
        path = folder / TASKS[draw.choice(THREE)].files[draw.choice(("train", "dev"))]
        path.write_bytes(damaged(path.read_bytes(), draw))
        out = tmp_path / f"out-{number}"
        arguments = ("run", RECIPE, "--data", folder, "--encoder", bert, "--max-steps", "1")
        status = assert_handled(commands, *arguments, "--set", "batch_size=4", "--out", out)
        assert out.exists() == (status == 0)
        found.append(status)
    assert set(found) == {0, 2}


LONG = {
    "a label of digits": b"0\ta\tgood\t" + b"1" * 131_000 + b"x\n",
    "a label of points": b"0\ta\tgood\t" + b"1." * 60_000 + b"\n",
    "one quote": b'0\ta\t"' + b"x\n" * 60_000,
    "many quotes": b"0\ta\t" + b'"' * 120_001 + b"\t3\n",
    "many tabs": b"\t" * 200_000 + b"\n",
    "a label deep in spaces": b"0\ta\tgood\t" + b" " * 130_000 + b"x\n",
}


@pytest.mark.parametrize("row", LONG.values(), ids=LONG)
def test_a_long_row_takes_no_long_time(tmp_path, row):
    (tmp_path / "ids-sst-train.csv").write_bytes(b"\tid\tsentence\tsentiment\n" + row)
    started = time.process_time()
    with pytest.raises(DataError):
        read_split(tmp_path, "sst", "train")
    assert time.process_time() - started < 2


def test_a_header_of_many_columns_takes_no_long_time(tmp_path):
    header = "\t".join(f"c{number}" for number in range(100_000))
    (tmp_path / "ids-sst-train.csv").write_text(header + "\n")
    started = time.process_time()
    with pytest.raises(DataError, match="column 'id' must be there"):
        read_split(tmp_path, "sst", "train")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "row",
    [b"\ta\tb\t1\n", b"\ta\t\xf0\x9f\x98\x80\t1\n", b"\n", b"\ta\t" + b"x" * 100_000 + b"\t1\n"],
    ids=["short rows", "wide characters", "empty lines", "long rows"],
)
def test_memory_stays_below_the_stated_multiple_of_the_file(tmp_path, row):
    path = tmp_path / "ids-sst-train.csv"
    path.write_bytes(b"\tid\tsentence\tsentiment\n" + row * (400_000 // len(row)) + b"\ta\tb\t1\n")
    read_split(tmp_path, "sst", "train")  # what is imported and cached on the way
    gc.collect()
    tracemalloc.start()
    split = read_split(tmp_path, "sst", "train")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert split.examples
    assert peak < 64 * path.stat().st_size


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_BYTES", 100)
    (tmp_path / "ids-sst-train.csv").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match="at most 100 bytes, found 101"):
        read_split(tmp_path, "sst", "train")


def test_what_is_no_file_is_refused(tmp_path):
    """A pipe nobody writes to would wait forever, a device never ends."""
    os.mkfifo(tmp_path / "ids-sst-train.csv")
    (tmp_path / "ids-sst-dev.csv").symlink_to("/dev/zero")
    for split in ("train", "dev"):
        with pytest.raises(DataError, match="must be a file"):
            read_split(tmp_path, "sst", split)


# Checkpoints of others.


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small checkpoint in BERT format."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary()]
    sizes = {"vocab_size": len(words), "hidden_size": 8, "intermediate_size": 8}
    torch.manual_seed(0)
    encoder = MinBert(EncoderConfig(num_layers=2, num_heads=2, max_positions=64, **sizes))
    tensors = to_bert_names(dict(encoder.named_parameters()))
    save_file(
        {n: t.detach().contiguous() for n, t in tensors.items()}, folder / "model.safetensors"
    )
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    _, tokenizer = load_encoder(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json"],
)
def test_damaged_checkpoints(bert, tmp_path, name):
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    if name in ("vocab.txt", "tokenizer_config.json"):
        (folder / "tokenizer.json").unlink()
    whole = (folder / name).read_bytes()
    draw = Random(f"checkpoint {name}")
    started = time.process_time()
    for number in range(250):
        if name.endswith(".json") and number % 2:
            text = text_of(changed(json.loads(whole), draw))
            (folder / name).write_text(text)
        else:
            header = 4000 if name == "model.safetensors" else len(whole)
            (folder / name).write_bytes(damaged(whole[:header], draw) + whole[header:])
        try:
            encoder, tokenizer = load_encoder(str(folder))
        except CheckpointError as error:
            assert_one_line(str(error), str(folder))
        else:
            assert sum(p.numel() for p in encoder.parameters()) < 1e5
            assert tokenizer.encode("the film was superb ? \u00fc").ids is not None
    assert time.process_time() - started < 60


def safetensors_file(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


BOMBS = {
    "layers": ("config.json", {"num_hidden_layers": 10**9}),
    "width": ("config.json", {"hidden_size": 2**24, "num_attention_heads": 2**24}),
    "vocabulary": ("config.json", {"vocab_size": 2**24}),
    "positions": ("config.json", {"max_position_embeddings": 10**30}),
    "everything": (
        "config.json",
        dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 2**24),
    ),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_sizes_without_weights_take_no_memory(commands, bert, data_folder, tmp_path, bomb):
    name, fields = bomb
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **fields}))
    arguments = ("run", RECIPE, "--data", data_folder, "--encoder", folder, "--max-steps", "1")
    assert assert_handled(commands, *arguments, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        safetensors_file({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        safetensors_file({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        safetensors_file(
            {"../../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"
        ),
        struct.pack("<Q", 60_000) + b"[" * 60_000,
    ],
    ids=["header of 2**63", "header of 2**40", "tensor of 2**40", "overflow", "path", "deep"],
)
def test_headers_that_lie(bert, tmp_path, content):
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(str(folder))
    assert_one_line(str(caught.value), "model.safetensors")


def test_an_index_is_not_followed_out_of_its_folder(bert, tmp_path):
    """A checkpoint in parts may name files of its own folder alone."""
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    index = {"weight_map": {"embeddings.word_embeddings.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="must name safetensors files of this folder"):
        load_encoder(str(folder))


# Run folders.


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    arguments = ("run", RECIPE, "--set", "batch_size=8", "--epochs", "2", "--out")
    status, process = commands.run(*arguments, out)
    assert status == 0, process.err
    return out


def run_in(out: Path) -> Path:
    return out / RECIPE / "seed-11711"


def spoil(folder: Path, name: str, draw: Random) -> None:
    """Damages bytes, or changes JSON that stays JSON."""
    path = folder / name
    whole = path.read_bytes()
    if name.endswith(".json") and draw.random() < 0.7:
        path.write_text(text_of(changed(json.loads(whole), draw)))
    elif name.endswith(".jsonl") and draw.random() < 0.7:
        lines = whole.decode().splitlines()
        for _ in range(3):
            number = draw.randrange(len(lines))
            lines[number] = text_of(changed({"x": json.loads(lines[number])}, draw).get("x"))
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_bytes(damaged(whole, draw))


TOLD = ["config.json", "environment.json", "metrics.jsonl", "predictions/sts-dev.csv"]


@pytest.mark.parametrize("name", TOLD)
def test_a_report_of_damaged_runs(finished, tmp_path, monkeypatch, name):
    """Without its plots, which take a second each; the next test has some of them."""
    monkeypatch.setattr(report, "write_plots", lambda *arguments: {})
    draw = Random(f"report {name}")
    num_reports = 0
    for number in range(30):
        out = Path(shutil.copytree(finished, tmp_path / str(number)))
        spoil(run_in(out), name, draw)
        try:
            report.report([out])
        except ValueError as error:
            assert_one_line(str(error))
        else:
            num_reports += 1
        shutil.rmtree(out)
    assert num_reports > 0


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("report", marks=pytest.mark.slow),
        pytest.param("analyze", marks=pytest.mark.slow),
        "predict",
        "run",
    ],
)
def test_commands_on_damaged_runs(commands, finished, tmp_path, command):
    draw = Random(command)
    names = {
        "report": TOLD,
        "analyze": TOLD,
        "predict": ["config.json", "config.json", "metrics.jsonl", "model.safetensors"],
        "run": ["config.json", "metrics.jsonl", "state/state.pt"],
    }[command]
    for number in range(3 if command in ("report", "analyze") else 15):
        out = Path(shutil.copytree(finished, tmp_path / str(number)))
        folder = run_in(out)
        if command == "run":  # as if it had been killed before its end
            lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
            (folder / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
        before = set(tmp_path.rglob("*"))
        spoil(folder, names[number % len(names)], draw)
        if command == "run":
            arguments = ("--set", "batch_size=8", "--epochs", "2", "--out", out, "--resume")
            assert_handled(commands, "run", RECIPE, *arguments)
        else:
            target = folder if command == "predict" else out
            assert_handled(commands, command, target, "--out", out / "made" / "here")
        made = set(tmp_path.rglob("*")) - before
        assert all(path.is_relative_to(out) for path in made), made


@pytest.mark.parametrize("id", ["../../../escaped", "/tmp/escaped", "a/../../b", "..", ""])
def test_an_id_never_leads_out_of_the_folder(finished, tmp_path, id):
    out = Path(shutil.copytree(finished, tmp_path / "runs"))
    path = run_in(out) / "config.json"
    config = json.loads(path.read_text())
    config["recipe"]["id"] = id
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"recipe\.id must be names") as caught:
        report.report([out])
    assert_one_line(str(caught.value))
    assert not list(tmp_path.parent.rglob("*escaped*"))


HUGE_HEAD = {
    "wide": ["linear:99999999999", "linear:out"],
    "too wide to count": ["linear:" + "9" * 25, "linear:out"],
}


@pytest.mark.parametrize("layers", HUGE_HEAD.values(), ids=HUGE_HEAD)
def test_a_huge_head_takes_no_memory(commands, finished, tmp_path, layers):
    out = Path(shutil.copytree(finished, tmp_path / "runs"))
    path = run_in(out) / "config.json"
    config = json.loads(path.read_text())
    config["recipe"]["heads"]["sst"]["layers"] = layers
    path.write_text(json.dumps(config))
    assert assert_handled(commands, "predict", run_in(out), "--out", out / "made") == 2


def test_a_state_that_grows_when_read_is_refused(tmp_path):
    """A compressed archive with the right checksum: a thousand times its size in memory."""
    import hashlib
    import zipfile
    from io import BytesIO

    path = tmp_path / "state.pt"
    save_state(path, {"x": torch.zeros(2**20)})
    whole = path.read_bytes()
    header = whole.index(b"PK") - 32
    packed = BytesIO()
    with (
        zipfile.ZipFile(BytesIO(whole[header + 32 :])) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    body = packed.getvalue()
    assert len(body) < 2**16
    path.write_bytes(whole[:header] + hashlib.sha256(body).digest() + body)
    with pytest.raises(RecordError, match="an archive that grows"):
        load_state(path)
