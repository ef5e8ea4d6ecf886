"""Where a run goes wrong: the error analyses of its dev predictions, as Markdown, a page and plots.

It derives everything from the run folder and the texts of its data, and never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.errors.cautions import comparisons, degenerate, remarks
from benchmarks.multitask_bert.errors.outcomes import Outcomes, read_outcomes
from benchmarks.multitask_bert.errors.pairs import (
    LONG_PAIR,
    PairErrors,
    binary_blocks,
    score_blocks,
)
from benchmarks.multitask_bert.errors.plots import draw_binary, draw_classes, draw_scores, save
from benchmarks.multitask_bert.errors.sentences import (
    SentenceErrors,
    confusion_blocks,
    sentence_blocks,
)
from benchmarks.multitask_bert.page.document import (
    Block,
    Figure,
    Heading,
    Items,
    Paragraph,
    Table,
    code,
    plain,
    strong,
)
from benchmarks.multitask_bert.page.html_page import to_html
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.records.rows import CONSTANT, Run, find_runs, metric_title
from benchmarks.multitask_bert.significance import (
    LEVEL,
    Estimate,
    judge,
)
from benchmarks.multitask_bert.tasks import BUILT_IN_DATA

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

NUM_WORST = 5


@dataclass(frozen=True)
class Analysis:
    """The page that was written about a run, and a line that sums it up."""

    summary: str
    markdown: str
    page: Path


def analyze(
    run: Path,
    data: str | None = None,
    out: Path | None = None,
    *,
    long_pair: int = LONG_PAIR,
    num_worst: int = NUM_WORST,
) -> Analysis:
    """Write ``analysis.md``, ``analysis.html`` and ``plots/*.svg`` of one finished run.

    The HTML page holds its plots and needs no other file. The files quote
    texts of the data.

    Args:
        run: the run folder.
        data: where the run's data are now; where they were by default.
        out: where to write; the run folder by default.
        long_pair: characters, of both texts, from which on a pair is long.
        num_worst: examples to quote of each kind.

    Raises:
        ValueError: there is not one run, it is unfinished, or its predictions and the data are
            not of each other.
    """
    runs, complaints = find_runs([run])
    if complaints:
        raise ValueError(complaints[0])
    if len(runs) > 1:
        raise ValueError(
            f"{run}: must be the folder of one run, found {len(runs)} runs in it; name one of them"
        )
    return _analyze(runs[0], data, Path(out or runs[0].folder), long_pair, num_worst)


def analyze_all(
    runs: Sequence[Path], data: str | None = None, out: Path | None = None
) -> list[Analysis]:
    """Analyze every run in some folders, each into its own folder.

    Args:
        runs: run folders, or folders that hold them at any depth.
        data: where the runs' data are now; where they were by default.
        out: where to write; with several runs, into ``<recipe id>/seed-<seed>`` below it.

    Raises:
        ValueError: as ``analyze``; or two runs would be written to one place.
    """
    found, complaints = find_runs(runs)
    if complaints:
        raise ValueError(complaints[0])
    folders = [run.folder for run in found]
    if out is not None:
        own = [Path(str(run.recipe["id"])) / f"seed-{run.seed}" for run in found]
        folders = [out if len(found) == 1 else out / path for path in own]
        if twice := {path for path in folders if folders.count(path) > 1}:
            raise ValueError(
                f"--out: must have one place for each run, found several for {min(twice)}; leave "
                "it out, or analyze them one by one"
            )
    return [
        _analyze(run, data, folder, LONG_PAIR, NUM_WORST)
        for run, folder in zip(found, folders, strict=True)
    ]


def _analyze(run: Run, data: str | None, out: Path, long_pair: int, num_worst: int) -> Analysis:
    outcomes = read_outcomes(run, data)
    source = str(data or run.config["data"])
    findings: list[Block] = []
    for each in outcomes:
        findings.append(Heading(each.task.title))
        if each.is_degenerate:
            findings.append(Paragraph(degenerate(each)))
            _plot_path(out, each).unlink(missing_ok=True)  # left by an earlier analysis
        else:
            findings += _task_blocks(each, source, out, long_pair, num_worst)
    notice = str(run.config.get("data_notice") or source).rstrip(".") + "."
    if source in BUILT_IN_DATA:
        warning = strong("SYNTHETIC DATA, NOT SST, QUORA AND STS.")
        first = Paragraph((warning, f" {notice[:1].upper()}{notice[1:]}"))
    else:
        first = Paragraph(notice)
    title = ("Where ", code(run.recipe["id"]), f", seed {run.seed}, goes wrong")
    blocks = [
        first,
        Heading(title, 1),
        _overview(outcomes),
        Items(tuple(remarks(run, outcomes, findings))),
        *_compromise(run),
        *findings,
    ]
    text = to_markdown(blocks)
    out.mkdir(parents=True, exist_ok=True)
    (out / "analysis.md").write_text(text, encoding="utf-8")
    page = out / "analysis.html"
    page.write_text(to_html(blocks, plain(title), out), encoding="utf-8")
    return Analysis(_summary(run, outcomes, findings), text, page)


def _summary(run: Run, outcomes: Sequence[Outcomes], findings: Sequence[Block]) -> str:
    """Give the metrics of a run, and how many of its errors' differences are no chance."""
    scores = [
        f"{metric_title(each.task.name)} {Estimate(each.metric, each.metric_error).text('{:.3f}')}"
        for each in outcomes
    ]
    _, judged, named = comparisons(findings)
    told = f"{named} of {judged} groups of examples stand out (by chance {LEVEL * judged:.0f})"
    return f"{run.recipe['id']} seed {run.seed}: {', '.join(scores)}; {told}"


def _task_blocks(
    outcomes: Outcomes, source: str, out: Path, long_pair: int, num_worst: int
) -> Iterator[Block]:
    draw: Callable[[], Drawing]
    if outcomes.task.kind == "classes":
        sentences = SentenceErrors(outcomes)
        parts = [confusion_blocks(outcomes), sentence_blocks(sentences, num_worst)]
        draw, shown = partial(draw_classes, sentences), "the confusion matrix, accuracy of groups"
    elif outcomes.task.kind == "binary":
        pairs = PairErrors(outcomes, long_pair)
        parts = [confusion_blocks(outcomes), binary_blocks(pairs, num_worst)]
        draw, shown = partial(draw_binary, pairs), "false positives and false negatives of groups"
    else:
        pairs = PairErrors(outcomes, long_pair)
        parts = [score_blocks(pairs, num_worst)]
        draw, shown = partial(draw_scores, pairs), "signed errors of groups"
    title = f"{outcomes.task.title}: errors on the dev split"
    path = _plot_path(out, outcomes)
    shown_source = "SYNTHETIC data" if source in BUILT_IN_DATA else Path(source).name
    save(draw, path, f"{title} ({shown_source})")
    yield Figure(title, path.relative_to(out), f"{title}: {shown}; the numbers are in the tables.")
    for part in parts:
        yield from part


def _plot_path(out: Path, outcomes: Outcomes) -> Path:
    return out / "plots" / f"errors-{outcomes.task.name}.svg"


def _overview(outcomes: Sequence[Outcomes]) -> Table:
    rows = []
    for each in outcomes:
        constant = metrics.constant_metric(each.task.kind, each.labels)
        found = Estimate(each.metric, each.metric_error)
        gain = Estimate(found.value - constant, found.error)
        rows.append(
            [
                metric_title(each.task.name),
                str(len(each)),
                found.text("{:.3f}"),
                f"{constant:.3f}",
                judge(gain, len(each)),
            ]
        )
    return Table.of(["", "dev examples", "this run", CONSTANT, "this run is"], rows)


def _compromise(run: Run) -> Iterator[Block]:
    """Tell what each task gives up for the one checkpoint that serves all of them."""
    steps = [step for step, event in run.by_step("dev").items() if event.get("best")]
    rows = []
    for task in run.metrics if steps else ():
        curve = run.points("dev", "metrics", task)
        if len(curve) > 1 and steps[-1] in curve:
            best, chosen = max(curve, key=lambda step: curve[step]), curve[steps[-1]]
            cells = [f"{curve[best]:.3f}", f"{chosen:.3f}", f"{curve[best] - chosen:.3f}"]
            rows.append([metric_title(task), str(best), *cells])
    if rows:
        yield Heading("Each task's own best checkpoint")
        header = ["", "its best step", "metric there", f"at step {steps[-1]}, the one kept"]
        yield Table.of([*header, "given up"], rows)
        text = "The best of several evaluations is too high by chance: compare with the ±."
        yield Paragraph(text)
