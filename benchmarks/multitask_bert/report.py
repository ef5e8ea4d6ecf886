"""Run folders to a Markdown report: our metrics beside the published ones, and plots.

It derives everything from what the runs left in their folders, and never imports torch.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.markdown import bullets, table
from benchmarks.multitask_bert.plots import write_plots
from benchmarks.multitask_bert.runs import (
    CONSTANT,
    NONE,
    OVERALL,
    Json,
    Row,
    Run,
    Section,
    find_runs,
    finite,
    group_by_data,
    last,
    mean_text,
    metric_title,
    number,
    pair_title,
)
from benchmarks.multitask_bert.tasks import TASKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STANDARD_ERRORS = {
    "accuracy": metrics.accuracy_standard_error,
    "pearson": metrics.pearson_standard_error,
}


def report(directories: Sequence[Path], out: Path | None = None) -> str:
    """Write ``report.md`` and ``plots/*.png`` from run folders, and give the Markdown.

    Arguments:
        directories: Folders that hold run folders, at any depth, or are run folders.
        out: Where to write; the first of the directories by default.

    Raises:
        ValueError: A directory is missing, or no run in any of them can be read.
    """
    runs, complaints = find_runs(directories)
    folder = Path(directories[0] if out is None else out)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    sections = group_by_data(runs)
    lines = []
    if len(sections) > 1:
        lines += [f"**{len(sections)} sources of data: compare no number across them.**", ""]
    for index, section in enumerate(sections):
        plots = write_plots(section, folder, prefix=f"{index + 1}-" if len(sections) > 1 else "")
        lines += _section_lines(section, complaints if index == 0 else [], plots)
    text = "\n".join(lines)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


@cache
def _published() -> Json:
    content: Json = tomllib.loads(
        Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
    )
    return content


def _is_other_split(section: Section, task: str) -> bool:
    """Say whether a task's dev split is none of those that were published on."""
    sizes = _published()["examples"]["dev"].get(task, [])
    found = section.dev_data.get(task, {}).get("examples")
    return section.is_synthetic or (found is not None and found not in sizes)


def _published_metrics(recipe_id: str) -> dict[str, float]:
    """Give the printed metrics and both overall scores, the one that is not printed computed."""
    published = _published()
    system = published["systems"].get(recipe_id)
    if not system or not system.get("dev"):
        return {}
    printed = dict(system["dev"])
    overall = printed.pop("overall", None)
    complete = {"sst", "quora", "sts"} <= printed.keys()
    scores = {name: score(printed) for name, score in OVERALL.items()} if complete else {}
    found = {**printed, **scores}
    if overall is not None:
        found[published["reports"][system["report"]]["overall"]] = overall
    return found


def _section_lines(
    section: Section, complaints: Sequence[str], plots: Mapping[str, Path]
) -> list[str]:
    notice = section.notice[:1].upper() + section.notice[1:].rstrip(".") + "."
    if section.is_synthetic:
        notice = f"**SYNTHETIC DATA, NOT SST, QUORA AND STS.** {notice}"
    return [
        notice if section.is_synthetic else f"Data: {notice}",
        "",
        f"# Multi-task BERT on {section.data}: dev metrics",
        "",
        *_result_lines(section),
        *bullets(_remarks(section, complaints)),
        *_deviation_lines(section),
        *_conflict_lines(section),
        *[line for title, path in plots.items() for line in (f"![{title}]({path})", "")],
        *_appendix_lines(section),
    ]


def _result_lines(section: Section) -> list[str]:
    numbers = _deviation_numbers(section)
    header = ["recipe", "method", "seeds", *map(metric_title, section.columns)]
    header += ["samples/s (training / evaluation)", "deviations"]
    rows = []
    for row in section.rows:
        speeds = [run.speeds() for run in row.runs]
        own = sorted({numbers[text] for run in row.runs for text in _deviations(run)})
        rows.append(
            [
                f"`{row.name}`",
                row.method,
                _seeds(row),
                *(_cell(section, row, column) for column in section.columns),
                " / ".join(_rate(column) for column in zip(*speeds, strict=True)),
                ", ".join(map(str, own)) or "none",
            ]
        )
    constants = section.constants
    if constants:
        values = {**constants, **{name: score(constants) for name, score in OVERALL.items()}}
        cells = [f"{values[c]:.3f}" if c in values else NONE for c in section.columns]
        rows.append([CONSTANT, NONE, NONE, *cells, NONE, NONE])
    return table(header, rows)


def _cell(section: Section, row: Row, column: str) -> str:
    """Give "ours ± std (n seeds) │ published", with the marks that the remarks explain."""
    values = row.values(column)
    ours = mean_text(values, "{:.3f}")
    if values:
        ours += f" ({len(values)} seed{'s' if len(values) > 1 else ''})"
    if any(column in run.degenerate for run in row.runs):
        ours += " †"
    published = _published_metrics(row.recipe_id)
    if column not in published:
        return f"{ours} │ {NONE}"
    tasks = [task for task in published if task in TASKS] if column in OVERALL else [column]
    mark = " ≠" if any(_is_other_split(section, task) for task in tasks) else ""
    return f"{ours} │ {published[column]:.3f}{mark}"


def _seeds(row: Row) -> str:
    def name(run: Run) -> str:
        return f"{run.seed}" if run.end else f"{run.seed} (unfinished, step {run.step})"

    counted = ", ".join(map(name, row.runs))
    if not row.uncounted:
        return counted
    return f"{counted}; not counted: {', '.join(map(name, row.uncounted))}"


def _remarks(section: Section, complaints: Sequence[str]) -> Iterator[str]:
    """Give what a reader of the table has to know, the gravest first."""
    for complaint in complaints:
        yield f"**Not read**, and missing above: {complaint}"
    for run in section.runs:
        if run.num_unreadable:
            lines = "line" if run.num_unreadable == 1 else "lines"
            yield f"`{run.folder}`: {run.num_unreadable} damaged {lines} of metrics.jsonl left out."
    for row in section.rows:
        for run in row.uncounted:
            reason = "its seed is there twice" if run.end else f"unfinished, step {run.step}"
            yield f"Not counted: `{run.folder}` ({reason})."
        for run in row.runs:
            for task in sorted(run.degenerate):
                yield (
                    f"† Degenerate: the {TASKS[task].title} predictions of `{row.name}`, seed "
                    f"{run.seed}, are all one value or not finite."
                )
    yield (
        "A cell is ours ± standard deviation over the seeds (number of seeds) │ the published "
        "number. Ours is the best checkpoint's; of an unfinished run, the best so far."
    )
    yield from _published_remarks(section)
    settings: dict[str, list[str]] = {}
    for row in section.rows:
        settings.setdefault(_settings(row.runs[0].config), []).append(f"`{row.name}`")
    for text, names in settings.items():
        yield text if len(settings) == 1 else f"{', '.join(names)}: {text}"
    errors = [
        f"{TASKS[task].title} {error:.3f} ({section.dev_data[task]['examples']:,} examples)"
        for task in section.dev_data
        if math.isfinite(error := _standard_error(section, task))
    ]
    if errors:
        yield f"Standard error of one run from the choice of dev examples: {'; '.join(errors)}."


def _settings(config: Json) -> str:
    steps, scale = config.get("max_steps"), config.get("scale", 1.0)
    length = "all steps of the epochs" if scale == 1 else f"**epochs shortened by {scale:g}**"
    return (
        f"Encoder {config.get('encoder', 'unknown')}, precision {config.get('precision', '?')}, "
        f"{length}{'' if steps is None else f', at most {steps} steps'}."
    )


def _published_remarks(section: Section) -> Iterator[str]:
    published = _published()
    systems = {
        row.recipe_id: published["systems"][row.recipe_id]
        for row in section.rows
        if row.recipe_id in published["systems"]
    }
    others = [task for task in section.tasks if _is_other_split(section, task)]
    if systems and section.is_synthetic:
        yield "≠ Published for SST, Quora and STS, which these data are not: do not compare."
    elif systems and others:
        sizes = ", ".join(
            f"{TASKS[task].title} (here {section.dev_data[task]['examples']:,} examples)"
            for task in others
        )
        yield f"≠ Published for another dev split, so do not compare: {sizes}."
    for key in dict.fromkeys(system["report"] for system in systems.values()):
        source = published["reports"][key]
        computed = " and ".join(name for name in OVERALL if name != source["overall"])
        yield (
            f"`{key}`: {' and '.join(source['authors'])}, {source['title']}. It prints the "
            f"{source['overall']} as its overall score; {computed} is computed from its metrics."
        )
    for recipe_id, system in systems.items():
        if "caution" in system:
            yield f"`{recipe_id}` as published: {system['caution']}"


def _standard_error(section: Section, task: str) -> float:
    """Give the standard error of one run, at the mean metric of the rows."""
    values = [value for row in section.rows for value in row.values(task) if math.isfinite(value)]
    if not values or not section.dev_data[task].get("examples"):
        return math.nan
    estimate = STANDARD_ERRORS[TASKS[task].metric]
    return estimate(float(np.mean(values)), section.dev_data[task]["examples"])


def _deviations(run: Run) -> list[str]:
    return [str(text) for text in run.config.get("deviations") or []]


def _deviation_numbers(section: Section) -> dict[str, int]:
    runs = [run for row in section.rows for run in row.runs]
    texts = dict.fromkeys(text for run in runs for text in _deviations(run))
    return {text: number for number, text in enumerate(texts, start=1)}


def _deviation_lines(section: Section) -> list[str]:
    numbers = _deviation_numbers(section)
    if not numbers:
        return []
    return [
        "## Deviations from the published systems",
        "",
        *(f"{number}. {text}" for text, number in numbers.items()),
        "",
    ]


def _conflict_lines(section: Section) -> list[str]:
    rows = []
    for row in section.rows:
        for pair in section.pairs:
            cosines = finite(
                v for run in row.runs for v in run.pair_points("cosines", pair).values()
            )
            rates = finite(last(run.pair_points("conflict_rate", pair)) for run in row.runs)
            if cosines or rates:
                cosine, rate = mean_text(cosines, "{:.3f}"), mean_text(rates, "{:.3f}")
                rows.append([f"`{row.name}`", pair_title(pair), cosine, rate])
    heading = ["## Conflicts between the tasks' gradients", ""]
    if not rows:
        return [*heading, "None on record: it takes PCGrad, or a loss sum that monitors.", ""]
    header = [
        "recipe",
        "tasks",
        "cosine ± std over logged steps",
        "share of steps in conflict ± std over seeds",
    ]
    return [*heading, *table(header, rows)]


def _appendix_lines(section: Section) -> list[str]:
    lines = ["<details>", "<summary>Every run: results, machine and command</summary>", ""]
    header = [
        "run",
        "seed",
        "state",
        "best epoch",
        *map(metric_title, section.tasks),
        "training",
        "date",
    ]
    rows = []
    for run in section.runs:
        end = run.end or {}
        seconds = number(end.get("train_seconds"))
        rows.append(
            [
                f"`{run.folder}`",
                str(run.seed),
                f"complete, step {run.step}" if run.end else f"unfinished, step {run.step}",
                str(end.get("best_epoch", NONE)),
                *(
                    mean_text([run.metrics[t]] if t in run.metrics else [], "{:.4f}")
                    for t in section.tasks
                ),
                f"{seconds:,.0f} s" if math.isfinite(seconds) else NONE,
                str(run.environment.get("date", "unknown")),
            ]
        )
    lines += table(header, rows)
    machines: dict[str, list[str]] = {}
    for run in section.runs:
        machines.setdefault(_machine(run), []).append(f"`{run.folder}`")
    for machine, folders in machines.items():
        where = "All of them" if len(machines) == 1 else ", ".join(folders)
        lines += [f"{where}: {machine}.", ""]
    commands = (shlex.join(map(str, run.config.get("command") or [])) for run in section.runs)
    lines += ["Commands:", "", "```", *dict.fromkeys(filter(None, commands)), "```", ""]
    for row in section.rows:
        if assumed := row.runs[0].recipe.get("assumed"):
            names = ", ".join(map(str, assumed))
            lines += [f"Assumed in `{row.name}`, where its report is silent: {names}.", ""]
    return [
        *lines,
        "The full configuration of a run is in its `config.json`.",
        "",
        "</details>",
        "",
    ]


def _machine(run: Run) -> str:
    told = run.environment
    gpu = told.get("gpu")
    return ", ".join(
        (
            f"{run.config.get('device', 'unknown device')} in {run.config.get('precision', '?')}",
            f"gradsurgery {run.config.get('version', '?')} at commit {told.get('git_commit')}",
            f"Python {told.get('python', '?')}",
            f"torch {told.get('torch', '?')}",
            str(told.get("platform", "unknown platform")),
            f"{told.get('cpu', 'unknown CPU')} with {told.get('num_threads', '?')} threads",
            f"GPU {gpu}" if gpu else "no GPU",
        )
    )


def _rate(speeds: Sequence[float]) -> str:
    known = finite(speeds)
    return f"{np.mean(known):.0f}" if known else NONE
