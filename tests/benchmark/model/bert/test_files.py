"""What is said of files that are absent, and what the hub is asked for."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

from benchmarks.multitask_bert.model.bert import files as bert_files
from benchmarks.multitask_bert.model.bert.weights import load_encoder
from tests.benchmark.model.bert.checkpoints import assert_holds, refusal
from tests.paths import ROOT


def test_a_pickle_is_refused_with_a_command_that_converts_it(original, folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # As BertForPreTraining has it: a name twice for the same memory, and names of old.
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): t for name, t in tensors.items()}
    words = old["embeddings.word_embeddings.weight"]
    torch.save(old | {"cls.predictions.decoder.weight": words}, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert f"{folder} has pytorch_model.bin but no model.safetensors" in message
    command = message.partition("runs none of it: ")[2]
    assert command.startswith("python -c ")
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    encoder, _ = load_encoder(str(folder))
    assert_holds(encoder, load_file(original / "model.safetensors"))


@pytest.fixture
def sharded(original, tmp_path):
    folder = tmp_path / "sharded"
    BertModel.from_pretrained(original).save_pretrained(folder, max_shard_size="2KB")
    shutil.copy(original / "vocab.txt", folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


def test_weights_in_shards_are_those_in_one_file(original, sharded):
    encoder, _ = load_encoder(str(sharded))
    assert_holds(encoder, load_file(original / "model.safetensors"))


def test_a_shard_that_is_missing_damaged_or_there_twice_is_named(sharded):
    first, second, *_ = sorted(sharded.glob("model-*-of-*.safetensors"))
    content = first.read_bytes()
    first.unlink()
    assert f"{sharded} has no {first.name}, which " in refusal(sharded)
    first.write_bytes(content[:-1])
    assert "is not readable as safetensors" in refusal(sharded)
    first.write_bytes(second.read_bytes())
    message = refusal(sharded)
    assert "stored twice" in message
    assert "missing" in message


@pytest.mark.parametrize(
    "index",
    [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": {"a": "../up.safetensors"}}],
)
def test_an_index_that_names_no_files_of_the_folder_is_refused(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map must name safetensors files of this folder" in refusal(sharded)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"{folder} has no {name}: " in refusal(folder)


def test_a_file_is_no_folder(folder):
    path = folder / "model.safetensors"
    assert f"{path} is a file: give the folder" in refusal(path)


def test_the_hub_is_asked_for_the_files_of_a_checkpoint_only(original, monkeypatch):
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, sorted(allow_patterns)))
        return str(original)

    monkeypatch.setattr(bert_files, "snapshot_download", download)
    encoder, _ = load_encoder("somebody/some-bert")
    assert_holds(encoder, load_file(original / "model.safetensors"))
    files = ["config.json", "model-*-of-*.safetensors"]
    files += ["model.safetensors", "model.safetensors.index.json"]
    files += ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert asked == [("somebody/some-bert", files)]


@pytest.mark.parametrize("reason", ["first line\nsecond line", ""])
def test_a_failed_download_is_one_line(monkeypatch, reason):
    def download(name, *, allow_patterns):
        raise ConnectionError(reason)

    monkeypatch.setattr(bert_files, "snapshot_download", download)
    message = refusal("somebody/some-bert")
    assert message.startswith("somebody/some-bert is no folder here, and the Hugging Face hub did")
    assert ("(first line second line)" if reason else "(ConnectionError)") in message


def test_an_unknown_name_offline_is_one_line(tmp_path):
    # In a process of its own, because huggingface_hub reads the environment when imported.
    program = (
        "import sys\n"
        "from benchmarks.multitask_bert.model.bert.files import CheckpointError\n"
        "from benchmarks.multitask_bert.model.bert.weights import load_encoder\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_encoder(name)\n"
        "    except CheckpointError as error: print(error)"
    )
    names = ["somebody/unknown", "not a name", "no/such/folder"]
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{name} is no folder here, and the Hugging Face hub did not give")
        assert line.endswith("check the name and the connection, or give a folder")
