"""The command line: jobs on a GPU within some minutes, the most important first."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFUSED = 2
# What the jobs import besides what a pack brings along, and what pip calls it.
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
}
_RESERVE = 0.05  # of the minutes: for packing the results at the end

_EPILOG = """\
examples:
  --minutes 9                   the most important jobs; a later call goes on with the rest
  --jobs tests 'table/*'        some of them; --list names all
  --dry-run                     tiny sizes on a CPU, to see whether everything runs
What is done, as WORK or the archives in OUT have it, is not done again; what failed is tried again,
after all else.
OUT gets summary.md and results-NN.tar.gz, each below 16 MB, without the runs' weights.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what can be done in the time; returns the exit status."""
    started = time.monotonic()
    options = _parser().parse_args(arguments)
    try:
        absent = [name for module, name in NEEDED.items() if find_spec(module) is None]
        if absent:
            names = " ".join(absent)
            raise ValueError(
                f"packages: must be installed, not found: {names}; pip install {names}"
            )
        name = "gpu-dry" if options.dry_run else "gpu"
        options.work = (options.work or Path("build") / name).resolve()
        options.out = options.out or Path("runs") / name
        return _carry_out(options, started)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED


def _carry_out(options: argparse.Namespace, started: float) -> int:
    # Not before it is known that they are there.
    import torch

    from benchmarks.gpu import dry, pack, results
    from benchmarks.gpu.jobs import Wanted, all_jobs
    from benchmarks.gpu.runner import FAILED, Outcomes, Runner
    from benchmarks.multitask_bert.data.corpus import load_corpus
    from benchmarks.multitask_bert.tasks import TASKS
    from benchmarks.speed.machine import describe

    if not (options.dry_run or torch.cuda.is_available()):
        raise ValueError("device: must be CUDA, but torch finds none here; try --dry-run")
    work = options.work
    packed, found = work / "pack", work / "results"
    if options.dry_run and options.pack is None:
        dry.write_data(work / "dry" / "data")
        dry.write_encoder(work / "dry" / "encoder")
        pack.write_pack(work / "dry", work / "dry" / "data", work / "dry" / "encoder")
        pack.open_pack(work / "dry", packed)
    else:
        pack.open_pack(options.pack or pack.PACK, packed)
    results.unpack(options.out, found)
    corpus = load_corpus(str(packed / "data"), list(TASKS))
    sizes = {task: len(corpus.splits[task, "train"].examples) for task in TASKS}
    wanted = Wanted(options.dry_run, options.seeds, options.scale, torch.cuda.device_count())
    known = all_jobs(wanted, sizes)
    jobs = [job for job in known if _is_asked_for(job.name, options.jobs)]
    if not jobs:
        raise ValueError(f"--jobs: must name some, got {' '.join(options.jobs)}; see --list")
    if options.list:
        print("\n".join(f"{job.minutes:6.1f} min  {job.name}" for job in jobs))
        return 0
    outcomes = Outcomes(found / "outcomes")
    paths = [str(ROOT), *map(str, pack.packages_path(packed)), os.environ.get("PYTHONPATH", "")]
    runner = Runner(
        outcomes,
        {"pack": _short(packed), "results": _short(found)},
        {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        options.processes,
        root=ROOT,
        grace=min(15.0, 6 * options.minutes),
    )
    # A request to end has what there is packed, as Ctrl-C has.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runner.carry_out(jobs, started + 60 * options.minutes * (1 - _RESERVE))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
    details = ["dry run: tiny sizes, not a measurement"] if options.dry_run else []
    about = [
        describe("cpu" if options.dry_run else "cuda", details),
        f"Epochs shortened by {options.scale:g}; the encoder's weights rounded to fp16; up to "
        f"{options.processes} runs at a time.",
    ]
    told = [job for job in known if job in jobs or outcomes.of(job)]
    text = results.summary(told, outcomes, found, about).replace(f"{_short(found)}{os.sep}", "")
    lines = results.pack(found, options.out)
    (options.out / results.SUMMARY).write_text(text, encoding="utf-8")
    print(text)
    print(*lines, options.out / results.SUMMARY, sep="\n")
    statuses = [outcome.status for job in jobs if (outcome := outcomes.of(job))]
    return 1 if FAILED in statuses else 0


def _short(path: Path) -> str:
    """Writes a path below the repository, where the jobs are started, without what is above it."""
    return str(path.relative_to(ROOT) if ROOT in path.parents else path)


def _is_asked_for(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Everything that only a GPU can answer: tests, timings, solvers, NCCL, runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--minutes", type=_above_zero, default=30.0, metavar="M",
                        help="after which nothing runs any more, default 30")  # fmt: skip
    parser.add_argument("--jobs", nargs="+", default=[], metavar="PATTERN", help="default: all")
    parser.add_argument("--list", action="store_true", help="name the jobs, and do none")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    at_a_time = max(1, min(8, cores // 2))
    parser.add_argument("--processes", type=_positive, default=at_a_time, metavar="N",
                        help="runs at a time; default half the cores, at most 8")  # fmt: skip
    parser.add_argument("--seeds", type=_positive, default=3, metavar="N", help="default 3")
    parser.add_argument("--scale", type=_above_zero, default=0.14, metavar="F",
                        help="shorten every epoch by this factor; default 0.14, about 1,000 steps "
                        "for a method")  # fmt: skip
    parser.add_argument("--pack", type=Path, metavar="DIR",
                        help="what `make gpu-pack` wrote, default build/gpu-pack")  # fmt: skip
    # Records of a dry run must not be taken for those of a real one.
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="default build/gpu; of a dry run, build/gpu-dry")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="default runs/gpu; of a dry run, runs/gpu-dry")  # fmt: skip
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
