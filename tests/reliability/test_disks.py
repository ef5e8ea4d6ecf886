"""Commands on a disk that is full, read-only or in use, against one line of error and a folder
from which the same command with --resume reaches what it would have reached on a good disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.multitask_bert.training.checkpoint import load_state, save_state
from tests.reliability.commands import Commands, Process
from tests.reliability.outcome import outcome

RECIPE = "smet-walker/v2-dropout-0.3"
ARGUMENTS = ("run", RECIPE, "--epochs", "2", "--set", "batch_size=8", "--out")
PREVIOUS_AND_NEXT = 2


def run_in(out: Path) -> Path:
    return out / RECIPE / "seed-11711"


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    status, process = commands.run(*ARGUMENTS, out)
    assert status == 0, process.err
    return run_in(out)


def assert_refused(status: int, process: Process, *words: str | Path) -> None:
    assert status == 2, process.err
    (line,) = process.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert str(word) in line


def assert_resumes(commands: Commands, out: Path, undisturbed: Path) -> None:
    status, process = commands.run(*ARGUMENTS, out, "--resume")
    assert status == 0, process.err
    assert outcome(run_in(out)) == outcome(undisturbed)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here, which takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(commands, mount, undisturbed):
    """It holds the model but not the state; with more room the run goes on."""
    status, process = commands.run(*ARGUMENTS, mount / "runs")
    assert_refused(status, process, mount, "No space left on device", "--resume")
    assert not list(mount.rglob("*.partial"))
    assert not list(mount.rglob("lock"))
    resize = ["mount", "-o", "remount,size=64m", str(mount)]
    subprocess.run(resize, check=True, capture_output=True)
    assert_resumes(commands, mount / "runs", undisturbed)


@pytest.mark.parametrize("kib", [1, 100, 400, 900])
def test_files_that_cannot_grow(commands, tmp_path, undisturbed, kib):
    """The same without root: no file may be larger than some size."""
    status, process = commands.run(*ARGUMENTS, tmp_path, file_bytes=kib * 1024)
    assert_refused(status, process, tmp_path, "File too large", "--resume")
    assert not list(tmp_path.rglob("*.partial"))
    assert_resumes(commands, tmp_path, undisturbed)


def test_a_read_only_folder(commands, mount):
    (mount / "before").write_text("kept")
    remount = ["mount", "-o", "remount,ro", str(mount)]
    subprocess.run(remount, check=True, capture_output=True)
    status, process = commands.run(*ARGUMENTS, mount / "runs")
    assert_refused(status, process, mount, "Read-only file system", "--out")
    assert [path.name for path in mount.iterdir()] == ["before"]


@pytest.mark.parametrize("name", ["", RECIPE.partition("/")[0], RECIPE, f"{RECIPE}/seed-11711"])
def test_a_file_in_place_of_a_folder(commands, tmp_path, name):
    out = tmp_path / "runs"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("kept")
    status, process = commands.run(*ARGUMENTS, out)
    assert_refused(status, process, out)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out / name]
    assert (out / name).read_text() == "kept"


def test_two_processes_in_one_folder(commands, tmp_path, undisturbed):
    """The second is refused, while the first lives and does nothing; and not once it is dead."""
    first = commands.start(*ARGUMENTS, tmp_path)
    while not (run_in(tmp_path) / "metrics.jsonl").exists():
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for resume in ([], ["--resume"]):
        for recipes in ([], ["smet-walker/general-linear-loss-sum"]):
            second = ("run", RECIPE, *recipes, *ARGUMENTS[2:], tmp_path, *resume)
            status, process = commands.run(*second)
            found = "found an unfinished one" if not resume and "state" in str(files) else ""
            assert_refused(status, process, run_in(tmp_path), found)
            if resume:
                assert f"found process {first.pid} at work in it" in process.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert_resumes(commands, tmp_path, undisturbed)
    assert not list(tmp_path.rglob("lock"))


def test_a_folder_is_free_once_its_process_has_ended(commands, tmp_path):
    for _ in range(2):
        assert commands.run(*ARGUMENTS, tmp_path)[0] == 0
        assert not list(tmp_path.rglob("lock"))


# A disk that returns other bytes than it was given.


@pytest.fixture(scope="module")
def unfinished(commands, tmp_path_factory):
    """A run with two checkpoints, as a kill before its last line leaves it."""
    out = tmp_path_factory.mktemp("unfinished")
    count = out / "count"
    assert commands.run(*ARGUMENTS, out / "whole", count=str(count))[0] == 0
    moment = int(count.read_text()) - 1  # the last one comes after the line
    assert commands.run(*ARGUMENTS, out / "runs", kill_at=moment)[0] == -signal.SIGKILL
    shutil.rmtree(out / "whole")
    states = run_in(out / "runs") / "state"
    assert sorted(path.name for path in states.iterdir()) == ["previous.pt", "state.pt"]
    return out / "runs"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def of_another_run(path: Path) -> None:
    state = load_state(path)
    save_state(path, {**state, "origin": {**state["origin"], "recipe": "some/other"}})


DAMAGES = {"flipped": flip, "cut": cut, "gone": Path.unlink, "of another run": of_another_run}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_previous_checkpoint_is_used_and_this_is_said(
    commands, tmp_path, undisturbed, unfinished, damage
):
    out = Path(shutil.copytree(unfinished, tmp_path / "runs"))
    state = run_in(out) / "state" / "state.pt"
    damage(state)
    status, process = commands.run(*ARGUMENTS, out, "--resume")
    assert status == 0, process.err
    (line,) = process.err.splitlines()
    assert line.startswith(f"{state}: must be the state of an interrupted run, found ")
    assert f"went on from {state.with_name('previous.pt')}, step 5" in line
    assert outcome(run_in(out)) == outcome(undisturbed)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_without_a_good_checkpoint_the_run_is_refused(commands, tmp_path, unfinished, damage):
    out = Path(shutil.copytree(unfinished, tmp_path / "runs"))
    for name in ("state.pt", "previous.pt"):
        of_another_run(run_in(out) / "state" / name)
    damage(run_in(out) / "state" / "state.pt")
    (run_in(out) / "lock").unlink()  # left by the killed process
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    status, process = commands.run(*ARGUMENTS, out, "--resume")
    assert_refused(status, process, "previous.pt", "some/other", "remove the run folder")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_metrics_that_changed_are_those_of_no_checkpoint(
    commands, tmp_path, undisturbed, unfinished
):
    """A change after the previous checkpoint is forgotten with it, one before it is refused."""
    for number, is_used in ((-2, True), (0, False)):
        out = Path(shutil.copytree(unfinished, tmp_path / f"runs{number}"))
        path = run_in(out) / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[number] = lines[number].replace(b"sst", b"sts", 1)
        path.write_bytes(b"".join(lines))
        status, process = commands.run(*ARGUMENTS, out, "--resume")
        if is_used:
            assert status == 0, process.err
            assert "previous.pt, step 5" in process.err
            assert outcome(run_in(out)) == outcome(undisturbed)
        else:
            assert_refused(status, process, path, "found others")


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damaged_weights_are_refused(commands, tmp_path, undisturbed, damage):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    damage(folder / "model.safetensors")
    status, process = commands.run("predict", folder, "--out", tmp_path / "out")
    assert_refused(status, process, "model.safetensors", "remove the run folder and run again")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_run_are_refused(commands, tmp_path, undisturbed):
    """They fit, and would predict something."""
    assert commands.run(*ARGUMENTS, tmp_path / "other", "--seed", "3")[0] == 0
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    other = tmp_path / "other" / RECIPE / "seed-3" / "model.safetensors"
    shutil.copy(other, folder / "model.safetensors")
    status, process = commands.run("predict", folder, "--out", tmp_path / "out")
    assert_refused(status, process, f"{RECIPE} seed 3 for {RECIPE} seed 11711")
