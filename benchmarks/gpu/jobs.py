"""What there is to do on a GPU, the most important first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.multitask_bert.recipes.catalog import all_recipes
from benchmarks.multitask_bert.recipes.recipe import Recipe
from benchmarks.multitask_bert.training.schedule import total_steps

FIRST_SEED = 11711
# Rows of the performance table that share an experiment: one job each, so that one's failure
# leaves the others.
TABLE = {
    "sync": ("sync",),
    "graph": ("graph",),
    "bandwidth": ("surgery-cuda",),
    "steps": ("bert-base-step", "bert-base-torchjd"),
    "compile": ("compile-cuda",),
}
TESTS = ("tests/library", "tests/speed", "tests/guides")
TESTS_DRY = ("tests/guides/test_amp.py",)
_FIRST_METHODS = ("method/loss-sum", "method/pcgrad")
# Guesses, until runs of the same call have told: seconds of a process before its first step, and
# of a step of MiniLM while others are on the card.
_START, _STEP = 20.0, 0.04


@dataclass(frozen=True)
class Job:
    """A command of this repository.

    Args:
        name: of its outcome; the part before the first "/" is its kind.
        arguments: after ``python``; ``{pack}`` stands for the folder of what was packed,
            ``{results}`` for that of what is measured.
        minutes: how long it will take, as far as known beforehand.
        alone: nothing else may run meanwhile, because times are taken or the card is filled.
        run: the folder of a training run, below ``{results}``; "" for anything else.
    """

    name: str
    arguments: tuple[str, ...]
    minutes: float
    alone: bool = True
    run: str = ""


@dataclass(frozen=True)
class Wanted:
    """How much of everything.

    Args:
        dry_run: tiny sizes on a CPU, to see whether everything runs; the figures mean nothing.
        seeds: of each recipe.
        scale: by which every epoch is shortened.
        num_gpus: of this machine.
    """

    dry_run: bool = False
    seeds: int = 3
    scale: float = 0.14
    num_gpus: int = 1


def all_jobs(wanted: Wanted, sizes: Mapping[str, int]) -> list[Job]:
    """Lists every job, in the order of importance.

    Args:
        wanted: how much of each.
        sizes: training examples of each task, which runs' lengths follow from.

    Example:
        >>> sizes = {"sst": 80, "quora": 80, "sts": 80, "cfimdb": 80}
        >>> [job.name for job in all_jobs(Wanted(seeds=2), sizes)][9:12]
        ['kernels', 'run/method/loss-sum/11711', 'run/method/loss-sum/11712']
    """
    return [*_measurements(wanted), *_runs(wanted, sizes)]


def _measurements(wanted: Wanted) -> Iterator[Job]:
    quick = ("--quick", "--rounds", "1") if wanted.dry_run else ()
    device = ("--device", "cpu" if wanted.dry_run else "cuda")
    tests = TESTS_DRY if wanted.dry_run else TESTS
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    yield Job("tests", (*pytest, "-k", "cuda", *tests), 4)
    for name, rows in TABLE.items():
        table = ("-m", "benchmarks.speed", "table", "--device", "cuda", "--rows", *rows)
        yield Job(f"table/{name}", (*table, *quick), 1)
    yield Job("solvers", ("-m", "benchmarks.speed", "weights", *device, *quick), 1)
    processes = 2 if wanted.dry_run else wanted.num_gpus
    launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    yield Job("nccl", (*launch, "-m", "benchmarks.gpu.nccl", *device), 1)
    yield Job("capture", ("-m", "benchmarks.speed", "capture", *device, *quick), 1)
    kernels = ("-m", "benchmarks.speed", "kernels", "--out", "{results}/kernels")
    yield Job("kernels", (*kernels, *device, *quick), 2)


def _runs(wanted: Wanted, sizes: Mapping[str, int]) -> Iterator[Job]:
    recipes = all_recipes()
    methods = [id for id in recipes if id.startswith("method/") and id not in _FIRST_METHODS]
    systems = [id for id in recipes if not id.startswith(("method/", "control/"))]
    controls = [id for id in recipes if id.startswith("control/")]
    seeds = range(FIRST_SEED, FIRST_SEED + wanted.seeds)
    # Differences need all seeds of the two that everything is compared with; of the others, every
    # one has its first seed before any has its second.
    yield from (_run(recipes[id], seed, wanted, sizes) for id in _FIRST_METHODS for seed in seeds)
    for group in (methods, systems, controls):
        yield from (_run(recipes[id], seed, wanted, sizes) for seed in seeds for id in group)


def _run(recipe: Recipe, seed: int, wanted: Wanted, sizes: Mapping[str, int]) -> Job:
    steps = total_steps(recipe, sizes, wanted.scale, 2 if wanted.dry_run else None)
    arguments = [
        *("-m", "benchmarks.multitask_bert", "run", recipe.id, "--seed", str(seed)),
        *("--data", "{pack}/data", "--encoder", "{pack}/encoder", "--out", "{results}/runs"),
        *("--device", "cpu" if wanted.dry_run else "cuda", "--threads", "1", "--resume"),
        # As everywhere with MiniLM, which was trained with the mean for smaller batches and rates.
        *("--scale", f"{wanted.scale:g}", "--set", "pooling=mean", "--set", "lr*=10"),
    ]
    if wanted.dry_run:
        arguments += ["--max-steps", "2"]
    return Job(
        f"run/{recipe.id}/{seed}",
        tuple(arguments),
        (_START + _STEP * steps) / 60,
        alone=False,
        run=f"runs/{recipe.id}/seed-{seed}",
    )
