"""A report in about ten lines: what ran, what differs, whether that is decided, what it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.multitask_bert.claims.differences import (
    is_monitored,
    machine_of,
    seconds_per_step,
)
from benchmarks.multitask_bert.claims.twins import METHOD, Contrast, is_plain
from benchmarks.multitask_bert.page.document import plain
from benchmarks.multitask_bert.records.rows import Row, Section, metric_title
from benchmarks.multitask_bert.records.series import finite, mean_text, number
from benchmarks.multitask_bert.report.differences import Compared, plain_interval
from benchmarks.multitask_bert.report.remarks import settings_text

MAX_ROWS = 4  # that get a line each
MAX_DIFFERENCES = 5
INDENT = "  "


def summary(section: Section, rows: Sequence[Row], compared: Sequence[Compared]) -> list[str]:
    """Sum a section up in plain lines, the answer last; recipes stand between backticks."""
    return [
        _about(section, rows),
        *(map(_row, rows) if len(rows) <= MAX_ROWS else _many(rows, compared)),
        *_differences(compared),
        _answer(rows, compared),
    ]


def cost_ratio(contrast: Contrast) -> float:
    """Give how many times as long a step takes; NaN where the two do not compare.

    They do on one machine, where a sum of the losses did not keep its gradients apart to watch
    them.
    """
    rows = (contrast.first, contrast.second)
    if len({machine_of(run) for row in rows for run in row.runs}) > 1:
        return math.nan
    if any(is_plain(row) and is_monitored(row) for row in rows):
        return math.nan
    first, second = (_seconds(row) for row in rows)
    return first / second if second > 0 else math.nan


def _about(section: Section, rows: Sequence[Row]) -> str:
    runs = [run for row in rows for run in row.runs if run.end]
    unfinished = sum(run.end is None for run in section.runs)
    text = f"On {section.title}: {_count(len(rows), 'row')} of {_count(len(runs), 'complete run')}"
    text += f", {unfinished} unfinished." if unfinished else "."
    settings = dict.fromkeys(plain(settings_text(row.runs[0].settings)) for row in rows)
    return f"{text} {next(iter(settings)) if len(settings) == 1 else f'{len(settings)} settings.'}"


def _row(row: Row) -> str:
    scores = row.values("mean")
    text = f"{row.method} (`{row.name}`): mean {mean_text(scores, '{:.3f}')}, {_seeds(row)}"
    return "; ".join([text, *_costs(row)])


def _many(rows: Sequence[Row], compared: Sequence[Compared]) -> Iterator[str]:
    methods: dict[str, int] = {}
    for row in rows:
        methods[row.method] = methods.get(row.method, 0) + 1
    counts = sorted({len(row.runs) for row in rows})
    shown = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    listed = ", ".join(f"{name} ({count})" for name, count in methods.items())
    seeds = f"{shown} seed{'' if shown == '1' else 's'} a row"
    caution = " (A SINGLE SEED DECIDES NOTHING)" if counts[0] == 1 else ""
    yield f"Methods: {listed}; {seeds}{caution}."
    ratios: dict[str, list[float]] = {}
    for each in compared:
        if each.contrast.setting == METHOD:
            ratios.setdefault(each.contrast.first.method, []).append(cost_ratio(each.contrast))
    known = {name: found for name, values in ratios.items() if (found := finite(values))}
    seconds = finite(_seconds(row) for row in rows)
    if seconds:
        total = sum(finite(_total_seconds(row) for row in rows))
        text = f"Cost: {_time(min(seconds))} to {_time(max(seconds))} a step"
        times = [f"{name} {_range(values)} times its twin" for name, values in known.items()]
        yield f"{'; '.join([text, *times])}; {total / 3600:.1f} hours of training in all."


def _differences(compared: Sequence[Compared]) -> Iterator[str]:
    if len(compared) == 1:
        (one,) = compared
        pairs = one.main.by_seed if one.main else ()
        yield (
            f"{one.contrast.title}, paired by {_count(len(pairs), 'seed')}, intervals of 95 % "
            "(unpaired in brackets):"
        )
        for metric, found in one.by_metric.items():
            best = found.best.text()
            unpaired = found.unpaired.text()
            yield f"{INDENT}{metric_title(metric)} {best} ({unpaired}): {one.answer(metric)}"
        return
    ordered = sorted(compared, key=_rank)
    if ordered:
        yield "Paired differences of the mean, intervals of 95 % (unpaired in brackets):"
    for each in ordered[:MAX_DIFFERENCES]:
        if (main := each.main) is not None:
            text = f"{main.best.text()} ({main.unpaired.text()}): {each.answer(main.metric)}"
            yield f"{INDENT}{each.contrast.title} {text}"
    if (rest := len(ordered) - MAX_DIFFERENCES) > 0:
        yield f"{INDENT}and {rest} more in the report."


def _answer(rows: Sequence[Row], compared: Sequence[Compared]) -> str:
    if not compared:
        complete = any(row.runs[0].end for row in rows)
        reason = "no two rows differ in one setting alone" if complete else "no run is complete"
        return f"Does it help here? Nothing to compare: {reason}."
    by_method = [each for each in compared if each.contrast.setting == METHOD]
    if len(by_method) == 1 and (main := by_method[0].main) is not None:
        answer = by_method[0].answer(main.metric)
        fits = f"{plain_interval(main.best)} fits these seeds"
        name = by_method[0].contrast.first.method
        shown = f"{metric_title(main.metric)} {main.best.value:+.3f}, {fits}"
        return f"Does {name} help here? {answer[:1].upper()}{answer[1:]} ({shown})."
    told: dict[str, Counter[str]] = {"higher": Counter(), "lower": Counter()}
    num_open = 0
    for each in by_method or compared:
        name = each.contrast.first.method if by_method else each.contrast.setting
        answer = each.answer(each.main.metric) if each.main else ""
        word = answer.removeprefix("decided: ")
        if word in told:
            told[word][name] += 1
        else:
            num_open += 1
    parts = [
        f"{word}: " + ", ".join(n if count == 1 else f"{n} ({count})" for n, count in names.items())
        for word, names in told.items()
        if names
    ]
    parts.append(f"not decided: {num_open}")
    return (
        f"Does it help here? Of {_count(len(by_method or compared), 'pair')}, {'; '.join(parts)}."
    )


def _rank(each: Compared) -> tuple[bool, bool, float]:
    main = each.main
    if main is None:
        return True, True, 0.0
    size = abs(main.best.value) / main.best.reach if main.best.reach > 0 else 0.0
    is_method = each.contrast.setting == METHOD
    return not each.is_decided(main.metric), not is_method, -size


def _seeds(row: Row) -> str:
    seeds = [run.seed for run in row.runs]
    if len(seeds) == 1:
        return f"SINGLE SEED {seeds[0]}"
    return f"{len(seeds)} seeds"


def _costs(row: Row) -> Iterator[str]:
    if math.isfinite(seconds := _seconds(row)):
        watched = ", watched" if is_plain(row) and is_monitored(row) else ""
        yield f"{_time(seconds)} a step{watched}"
    peaks = finite(number((run.end or {}).get("peak_bytes")) for run in row.runs)
    if peaks:
        yield f"peak memory {max(peaks) / 1e9:.2f} GB"


def _seconds(row: Row) -> float:
    known = finite(seconds_per_step(run) for run in row.runs)
    return float(np.mean(known)) if known else math.nan


def _total_seconds(row: Row) -> float:
    return math.fsum(finite(number((run.end or {}).get("train_seconds")) for run in row.runs))


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _range(values: Sequence[float]) -> str:
    texts = dict.fromkeys(f"{value:.2f}" for value in (min(values), max(values)))
    return " to ".join(texts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
