"""Where a run goes wrong: the error analyses of its dev predictions, as Markdown, a page and plots.

It derives everything from the run folder and the texts of its data, and never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.multitask_bert import metrics
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
    Text,
    code,
    plain,
    strong,
)
from benchmarks.multitask_bert.page.html_page import to_html
from benchmarks.multitask_bert.page.markdown import to_markdown
from benchmarks.multitask_bert.records.rows import CONSTANT, Run, find_runs, metric_title
from benchmarks.multitask_bert.significance import (
    LEVEL,
    MIN_COUNT,
    NUM_ERRORS,
    Estimate,
    Verdict,
    judge,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

NUM_WORST = 5
# A share of predictions of one class, from which on little else is learned.
NEARLY_ALL = 0.95
# The record rounds scores to six digits.
METRIC_TOLERANCE = 1e-3


def analyze(
    run: Path,
    data: str | None = None,
    out: Path | None = None,
    *,
    long_pair: int = LONG_PAIR,
    num_worst: int = NUM_WORST,
) -> str:
    """Write ``analysis.md``, ``analysis.html`` and ``plots/*.svg`` of one finished run.

    Gives the Markdown. The HTML page holds its plots and needs no other file. The files quote
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


def analyze_all(runs: Sequence[Path], data: str | None = None, out: Path | None = None) -> str:
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
    texts = [
        _analyze(run, data, folder, LONG_PAIR, NUM_WORST)
        for run, folder in zip(found, folders, strict=True)
    ]
    return "\n".join(texts)


def _analyze(run: Run, data: str | None, out: Path, long_pair: int, num_worst: int) -> str:
    outcomes = read_outcomes(run, data)
    source = str(data or run.config["data"])
    findings: list[Block] = []
    for each in outcomes:
        findings.append(Heading(each.task.title))
        if each.is_degenerate:
            findings.append(Paragraph(_degenerate(each)))
            _plot_path(out, each).unlink(missing_ok=True)  # left by an earlier analysis
        else:
            findings += _task_blocks(each, source, out, long_pair, num_worst)
    notice = str(run.config.get("data_notice") or source).rstrip(".") + "."
    if source == "synthetic":
        warning = strong("SYNTHETIC DATA, NOT SST, QUORA AND STS.")
        first = Paragraph((warning, f" {notice[:1].upper()}{notice[1:]}"))
    else:
        first = Paragraph(notice)
    title = ("Where ", code(run.recipe["id"]), f", seed {run.seed}, goes wrong")
    blocks = [
        first,
        Heading(title, 1),
        _overview(outcomes),
        Items(tuple(_remarks(run, outcomes, findings))),
        *_compromise(run),
        *findings,
    ]
    text = to_markdown(blocks)
    out.mkdir(parents=True, exist_ok=True)
    (out / "analysis.md").write_text(text, encoding="utf-8")
    (out / "analysis.html").write_text(to_html(blocks, plain(title), out), encoding="utf-8")
    return text


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
    save(draw, path, f"{title} ({'SYNTHETIC data' if source == 'synthetic' else source})")
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


def _remarks(run: Run, outcomes: Sequence[Outcomes], findings: Sequence[Block]) -> Iterator[Text]:
    """Give what a reader has to know, the gravest first."""
    for each in outcomes:
        if each.is_degenerate:
            yield _degenerate(each)
        elif (warning := _nearly_constant(each)) is not None:
            yield warning
        recorded = run.metrics.get(each.task.name)
        if recorded is not None and not abs(recorded - each.metric) <= METRIC_TOLERANCE:
            yield (
                strong("The record says otherwise"),
                f": {metric_title(each.task.name)} {recorded:.3f} in metrics.jsonl, "
                f"{each.metric:.3f} from the predictions.",
            )
    yield (
        "± is one standard error from the choice of dev examples. It knows nothing of other seeds, "
        "and a difference seen here may not come back in another run."
    )
    yield (
        f"A difference is named where it exceeds {NUM_ERRORS:g} standard errors, or where an exact "
        f"test (two-sided: signs, Fisher, McNemar) gives p < {LEVEL:g}. Where a side has fewer "
        f"than {MIN_COUNT} examples, or no outcome of as many could have given such a p, there are "
        f"{Verdict.TOO_FEW.value}."
    )
    rows = (row for block in findings if isinstance(block, Table) for row in block.rows)
    verdicts = [cell for row in rows for cell in row if isinstance(cell, Verdict)]
    judged = [verdict for verdict in verdicts if verdict is not Verdict.TOO_FEW]
    named = [verdict for verdict in judged if verdict is not Verdict.NOISE]
    yield (
        f"Of {len(verdicts)} comparisons below, {len(judged)} have examples enough to tell and "
        f"{len(named)} are named; chance alone would name about {LEVEL * len(judged):.0f}."
    )
    yield (
        "Groups overlap and features go together (long pairs share longer runs of words), so a "
        "difference is no cause."
    )
    yield (
        'A signed error is prediction less label. "At equal label" is the difference that a '
        "regression leaves once the label is accounted for: scores drawn to the middle are too "
        "high on low labels whatever the text says. The verdict is on that one."
    )
    background = outcomes[0].background
    yield (
        "The features are rules on words, without a parser: names are learned from capitals "
        f"({len(background.names):,} words), negation, idioms and polarity come from short lists, "
        "and no part of speech tells the senses of a shared word apart."
    )
    if background.num_pieces is None:
        yield "Word pieces are not counted: the encoder's tokenizer.json is not at hand."


def _degenerate(outcomes: Outcomes) -> Text:
    return (
        strong("Degenerate"),
        f": the {outcomes.task.title} predictions are all one value or not finite "
        f"(the first is {outcomes.predictions[0]:g}), so there are no errors to compare.",
    )


def _nearly_constant(outcomes: Outcomes) -> Text | None:
    if outcomes.task.kind == "score":
        return None
    classes, counts = np.unique(outcomes.predictions, return_counts=True)
    share = counts.max() / counts.sum()
    if share < NEARLY_ALL:
        return None
    constant = metrics.constant_metric(outcomes.task.kind, outcomes.labels)
    return (
        strong("Nearly constant"),
        f": {share:.1%} of the {outcomes.task.title} predictions are class "
        f"{classes[counts.argmax()]:g}; accuracy {outcomes.metric:.3f}, {CONSTANT} {constant:.3f}.",
    )


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
