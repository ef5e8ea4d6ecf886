"""What came of the jobs: archives to be carried back, and a summary for a reader."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu import archive
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.runner import DONE, FAILED, STOPPED, Outcomes
from benchmarks.multitask_bert.page.markdown import table
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.tasks import TASKS

SUMMARY = "summary.md"
_STEM = "results"
_END = 20  # lines that are shown of what a failed job printed
_NOT_REACHED = "not reached"
# Of a run; its weights stay where it ran.
_RECORD = ("config.json", "environment.json", "metrics.jsonl", "predictions/*.csv")


def unpack(out: Path, results: Path) -> None:
    """Takes up the results of an earlier call, where this machine does not have them."""
    for part in sorted(out.glob(f"{_STEM}-*.tar.gz")):
        archive.extract(part, results)


def pack(results: Path, out: Path) -> list[str]:
    """Archives every outcome and the records of finished runs, and removes these runs' weights.

    Returns:
        Lines that say what was written, and what was left out.
    """
    runs = results / "runs"
    kept = [
        path
        for path in sorted(results.rglob("*"))
        if path.is_file() and runs not in path.parents and path.suffix != ".partial"
    ]
    for folder in sorted({path.parent for path in runs.rglob("metrics.jsonl")}):
        if Record(folder).is_complete:
            for weights in folder.glob("*.safetensors"):
                weights.unlink()
            kept += [path for name in _RECORD for path in sorted(folder.glob(name))]
    parts, left_out = archive.split(kept, results, out, _STEM)
    lines = [f"{part}: {part.stat().st_size / 1e6:.1f} MB" for part in parts]
    return [*lines, *(f"left out, too large: {path}" for path in left_out)]


def summary(jobs: Sequence[Job], outcomes: Outcomes, results: Path, about: Sequence[str]) -> str:
    """Writes Markdown: how far the jobs came, what the measurements printed, the runs' metrics.

    Args:
        jobs: all that were to be done.
        outcomes: theirs.
        results: the folder of the runs.
        about: lines about the machine and the call.
    """
    states = [_status(job, outcomes) for job in jobs]
    counts = [f"{states.count(each)} {each}" for each in (DONE, FAILED, STOPPED, _NOT_REACHED)]
    lines = ["# What the GPU said", "", f"{len(jobs)} jobs: {', '.join(counts)}.", ""]
    lines += [*about, ""]
    measurements = [job for job in jobs if not job.run]
    cells = [
        [job.name, _status(job, outcomes), _minutes(job, outcomes), _last(job, outcomes)]
        for job in jobs
        if not job.run or _status(job, outcomes) == FAILED
    ]
    if cells:
        lines += table(["job", "", "minutes", "its last line"], cells)
    for job in measurements:
        printed = outcomes.printed(job, ".out")
        if _status(job, outcomes) == FAILED:
            end = (printed + outcomes.printed(job, ".err"))[-_END:]
            lines += [f"## {job.name}, failed", "", *(f"    {line}" for line in end), ""]
        elif _has_table(printed):
            lines += [f"## {job.name}", "", *_spaced(printed), ""]
    rows = list(_rows(jobs, outcomes, results))
    if rows:
        lines += ["## runs", "", "Mean of the dev metrics of the best checkpoint.", ""]
        titles = [task.title for task in TASKS.values()]
        lines += table(["recipe", "seeds", "mean ± sd", *titles, "minutes a run"], rows)
    return "\n".join(lines).rstrip() + "\n"


def _status(job: Job, outcomes: Outcomes) -> str:
    found = outcomes.of(job)
    return found.status if found else _NOT_REACHED


def _minutes(job: Job, outcomes: Outcomes) -> str:
    found = outcomes.of(job)
    return f"{found.seconds / 60:.1f}" if found else ""


def _last(job: Job, outcomes: Outcomes) -> str:
    if (found := outcomes.of(job)) is None:
        return ""
    lines = outcomes.printed(job, ".out")
    if found.status == DONE and _has_table(lines):
        return "see below"
    if found.status == FAILED:
        lines = outcomes.printed(job, ".err") or lines or [f"exit status {found.code}"]
    return lines[-1][:200].replace("|", "\\|") if lines else ""


def _has_table(lines: Sequence[str]) -> bool:
    return any(line.startswith("|") for line in lines)


def _spaced(lines: Sequence[str]) -> Iterator[str]:
    """Gives a table the empty lines around it that Markdown needs."""
    before = ""
    for line in lines:
        if before and line.startswith("|") != before.startswith("|"):
            yield ""
        yield line
        before = line


def _rows(jobs: Sequence[Job], outcomes: Outcomes, results: Path) -> Iterator[list[str]]:
    recipes: dict[str, list[Job]] = {}
    for job in jobs:
        if job.run:
            recipes.setdefault(str(Path(job.run).parent.relative_to("runs")), []).append(job)
    for recipe, wanted in recipes.items():
        done = [job for job in wanted if outcomes.is_done(job)]
        ends = [
            event
            for job in done
            for event in Record(results / job.run).events()
            if event["event"] == "end"
        ]
        if ends:
            means = [event["mean"] for event in ends]
            deviation = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
            minutes = [found.seconds / 60 for job in done if (found := outcomes.of(job))]
            yield [
                recipe,
                f"{len(ends)} of {len(wanted)}",
                f"{statistics.fmean(means):.3f}{deviation}",
                *(_mean([event["metrics"].get(task) for event in ends]) for task in TASKS),
                f"{statistics.fmean(minutes):.1f}",
            ]


def _mean(metrics: Sequence[float | None]) -> str:
    found = [metric for metric in metrics if metric is not None]
    return f"{statistics.fmean(found):.3f}" if found else ""
