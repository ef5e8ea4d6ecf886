"""The command as a dry run on a CPU: what it does, leaves and says, also when called again."""

import shutil
import tarfile

import pytest
import torch

from benchmarks.gpu import __main__ as cli
from benchmarks.gpu import dry, pack
from benchmarks.gpu.__main__ import main

for name in pack.PACKAGES:
    pytest.importorskip(name)
RUN = "run/method/pcgrad/11711"
KINDS = ("tests", "table/*", "solvers", "nccl", "capture", "kernels", RUN)


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """Calls the command in an empty folder."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]

    def call(*arguments):
        capsys.readouterr()
        status = main([*folders, *arguments])
        return (status, *capsys.readouterr())

    return call


def names_in(out):
    names = []
    for part in sorted(out.glob("*.tar.gz")):
        with tarfile.open(part) as file:
            names += file.getnames()
    return names


def test_a_dry_run_goes_on_from_its_results_on_another_machine(call, tmp_path):
    status, text, progress = call("--dry-run", "--minutes", "9", "--jobs", "solvers", RUN)
    assert status == 0, text + progress
    assert "2 jobs: 2 done, 0 failed, 0 stopped, 0 not reached." in text
    assert "dry run: tiny sizes, not a measurement" in text
    assert "| operators here |" in text
    assert "| method/pcgrad | 1 of 1 |" in text
    out = tmp_path / "out"
    assert (out / "summary.md").read_text() in text
    assert str(tmp_path) not in (out / "summary.md").read_text()
    names = names_in(out)
    assert {"outcomes/solvers.json", "outcomes/solvers.out", f"outcomes/{RUN}.json"} <= {*names}
    run = "runs/method/pcgrad/seed-11711"
    assert {f"{run}/metrics.jsonl", f"{run}/predictions/sst-dev.csv"} <= {*names}
    assert not any(name.endswith(".safetensors") for name in names)
    assert not any((tmp_path / "work" / "results").rglob("*.safetensors"))

    shutil.rmtree(tmp_path / "work")  # another machine, to which the results alone were carried
    status, text, progress = call("--dry-run", "--minutes", "9", "--jobs", "solvers")
    assert status == 0
    assert progress == ""  # nothing was done
    assert "2 jobs: 2 done" in text  # and what was not asked for is not forgotten
    assert names_in(out) == names


@pytest.mark.slow
def test_a_dry_run_of_every_kind_of_job(call):
    status, text, progress = call("--dry-run", "--minutes", "20", "--jobs", *KINDS)
    assert status == 0, text + progress
    assert "11 jobs: 11 done" in text
    for heading in ("table/sync", "solvers", "nccl", "capture", "kernels", "runs"):
        assert f"## {heading}\n" in text


def test_a_failing_job_is_shown(call, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.jobs.TESTS_DRY", ("tests/that-are-not-there",))
    status, text, _ = call("--dry-run", "--minutes", "9", "--jobs", "tests")
    assert status == 1
    assert "1 jobs: 0 done, 1 failed" in text
    assert "## tests, failed" in text
    assert "tests/that-are-not-there" in text


def test_without_time_nothing_is_done(call, tmp_path):
    status, text, progress = call("--dry-run", "--minutes", "0.001", "--jobs", "tests", "solvers")
    assert (status, progress) == (0, "")
    assert "2 jobs: 0 done, 0 failed, 0 stopped, 2 not reached." in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.md"]


def test_the_list_does_nothing(call, tmp_path):
    status, text, _ = call("--dry-run", "--list")
    assert status == 0
    lines = text.splitlines()
    assert lines[0].split() == ["4.0", "min", "tests"]
    assert lines[-1].split()[-1].startswith("run/control/")
    assert not (tmp_path / "out").exists()


def test_a_pack_that_was_carried_here_is_used(call, tmp_path):
    dry.write_data(tmp_path / "data")
    dry.write_encoder(tmp_path / "encoder")
    pack.write_pack(tmp_path / "pack", tmp_path / "data", tmp_path / "encoder")
    status, _, _ = call("--dry-run", "--list", "--pack", str(tmp_path / "pack"))
    assert status == 0
    assert (tmp_path / "work" / "pack" / "encoder" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--jobs", "nothing"], "--jobs: must name some, got nothing; see --list"),
        (["--dry-run", "--pack", "nowhere"], "--pack: must hold pack.tar.gz, found none"),
        pytest.param(
            [],
            "device: must be CUDA, but torch finds none here; try --dry-run",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="is about no CUDA device"),
        ),
    ],
)
def test_refusals_are_one_line(call, arguments, message):
    status, text, complaint = call(*arguments)
    assert (status, text) == (2, "")
    assert complaint.startswith(f"error: {message}")
    assert len(complaint.splitlines()) == 1


def test_missing_packages_are_named_in_one_line(call, monkeypatch):
    monkeypatch.setattr(cli, "NEEDED", {"torch": "torch", "no_such_a": "a-b", "no_such_c": "c"})
    status, text, complaint = call("--dry-run")
    assert (status, text) == (2, "")
    assert complaint == (
        "error: packages: must be installed, not found: a-b c; pip install a-b c\n"
    )


def test_what_is_needed_is_here():
    assert all(cli.find_spec(module) for module in cli.NEEDED)
