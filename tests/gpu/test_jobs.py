"""The list of jobs against the performance table, the recipes and the order asked for."""

import pytest

from benchmarks.gpu.jobs import TABLE, TESTS, Wanted, all_jobs
from benchmarks.multitask_bert.recipes.catalog import all_recipes
from tests.paths import ROOT

SIZES = {"sst": 8544, "quora": 16213, "sts": 6040, "cfimdb": 1707}
SEEDS = ("11711", "11712", "11713")


@pytest.fixture(scope="module")
def jobs():
    return all_jobs(Wanted(), SIZES)


def test_every_recipe_with_every_seed_and_each_job_once(jobs):
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    runs = {f"run/{id}/{seed}" for id in all_recipes() for seed in SEEDS}
    assert {name for name in names if name.startswith("run/")} == runs


def test_every_row_of_the_table_that_needs_cuda():
    table = pytest.importorskip("benchmarks.speed.table")
    keys = sorted(row.key for row in table.ROWS if row.device == "cuda")
    assert sorted(key for rows in TABLE.values() for key in rows) == keys


def test_the_most_important_first(jobs):
    names = [job.name for job in jobs]
    kinds = [name.partition("/")[0] for name in names]
    first = ["tests", *["table"] * len(TABLE), "solvers", "nccl", "capture", "kernels"]
    assert kinds[: len(first)] == first
    runs = [name.removeprefix("run/") for name in names[len(first) :]]
    assert set(kinds[len(first) :]) == {"run"}
    pairs = [f"method/{id}/{seed}" for id in ("loss-sum", "pcgrad") for seed in SEEDS]
    assert runs[:6] == pairs
    others = [run for run in runs[6:] if run.startswith("method/")]
    systems = [run for run in runs if not run.startswith(("method/", "control/"))]
    controls = [run for run in runs if run.startswith("control/")]
    assert runs[6:] == [*others, *systems, *controls]
    for group in (others, systems, controls):  # all first seeds, then all second ones
        assert [run[-5:] for run in group] == [s for s in SEEDS for _ in range(len(group) // 3)]


def test_a_dry_run_does_the_same_jobs(jobs):
    dry = all_jobs(Wanted(dry_run=True), SIZES)
    assert [(job.name, job.alone, job.run) for job in dry] == [
        (job.name, job.alone, job.run) for job in jobs
    ]
    for tiny, real in zip(dry, jobs, strict=True):
        assert tiny.arguments[:2] == real.arguments[:2]
        assert tiny.arguments != real.arguments  # so that none counts as done by the other


def test_only_runs_share_the_card_and_longer_ones_count_as_longer(jobs):
    assert all(job.alone == (not job.run) for job in jobs)
    minutes = {job.name: job.minutes for job in jobs}
    short, long = (f"run/smet-walker/v1-{each}/11711" for each in ("dropout-0.3", "epochs-20"))
    assert minutes["run/smet-walker/baseline-untrained/11711"] < minutes[short] < minutes[long]


def test_the_tests_are_there():
    assert all((ROOT / folder).is_dir() for folder in TESTS)


def test_a_process_on_each_gpu():
    (nccl,) = (job for job in all_jobs(Wanted(num_gpus=4), SIZES) if job.name == "nccl")
    assert "--nproc-per-node=4" in nccl.arguments
