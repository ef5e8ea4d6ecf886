"""The pack against what it was made of: data byte for byte, weights to fp16, packages by import."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import dry, pack
from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.model.bert.weights import load_encoder
from benchmarks.multitask_bert.tasks import TASKS
from tests.paths import ROOT, SHARED

for name in pack.PACKAGES:
    pytest.importorskip(name)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    dry.write_data(folder / "data")
    dry.write_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def opened(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    archive = pack.write_pack(folder, source / "data", source / "encoder")
    assert [*folder.iterdir()] == [archive]
    pack.open_pack(folder, folder / "opened")
    return folder / "opened"


def test_data_are_the_same_bytes(source, opened):
    names = [task.files[split] for task in TASKS.values() for split in ("train", "dev")]
    assert sorted(path.name for path in (opened / "data").iterdir()) == sorted(names)
    for name in names:
        assert (opened / "data" / name).read_bytes() == (source / "data" / name).read_bytes()
    load_corpus(str(opened / "data"), list(TASKS))


def test_weights_are_rounded_to_fp16(source, opened):
    before, tokenizer = load_encoder(str(source / "encoder"))
    after, same_tokenizer = load_encoder(str(opened / "encoder"))
    assert tokenizer.get_vocab() == same_tokenizer.get_vocab()
    assert any(
        not torch.equal(parameter, parameter.half().float()) for parameter in before.parameters()
    )
    for name, parameter in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], parameter.half().float()), name


def test_packed_packages_can_be_imported_where_there_are_none(opened, monkeypatch):
    assert pack.packages_path(opened) == []  # here they are installed
    monkeypatch.setattr(pack, "find_spec", lambda name: None)
    paths = pack.packages_path(opened)
    assert len(paths) == len(pack.PACKAGES)
    names = ", ".join(pack.PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", f"import {names}\nfor each in {names}: print(each.__file__)"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    for path, found in zip(paths, done.stdout.splitlines(), strict=True):
        assert found.startswith(str(path))


def test_a_pack_above_the_limit_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"must have at most 10000 bytes, got \d+; give a smaller"):
        pack.write_pack(tmp_path / "pack", source / "data", source / "encoder")
    assert [*(tmp_path / "pack").iterdir()] == []


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("data/sts-dev.csv", "sts-dev.csv"),
        ("encoder/model.safetensors", "--encoder: must hold model.safetensors"),
    ],
)
def test_what_lacks_a_file_is_refused_in_one_line(source, tmp_path, capsys, lacking, message):
    for folder in ("data", "encoder"):
        (tmp_path / folder).mkdir()
        for path in (source / folder).iterdir():
            if f"{folder}/{path.name}" != lacking:
                (tmp_path / folder / path.name).symlink_to(path)
    given = [
        "--data",
        tmp_path / "data",
        "--encoder",
        tmp_path / "encoder",
        "--out",
        tmp_path / "o",
    ]
    assert pack.main([str(each) for each in given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "o" / pack.NAME).exists()


def test_without_a_pack(tmp_path):
    with pytest.raises(
        ValueError, match=r"--pack: must hold pack\.tar\.gz, found none in .*gpu-pack"
    ):
        pack.open_pack(tmp_path, tmp_path / "opened")


def test_git_ignores_the_pack():
    if not (ROOT / ".git").exists():
        pytest.skip("not in a clone")
    found = subprocess.run(["git", "check-ignore", pack.PACK / pack.NAME], cwd=ROOT, check=False)
    assert found.returncode == 0


def test_minilm_and_the_real_data_fit(tmp_path):
    if not (SHARED / "data").is_dir():
        pytest.skip("the data folder is not beside the checkout")
    if pack.minilm() is None:
        pytest.skip("the MiniLM checkpoint is not installed: make minilm")
    assert pack.main(["--data", str(SHARED / "data"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / pack.NAME).stat().st_size < 48 << 20  # beside it the repository travels
