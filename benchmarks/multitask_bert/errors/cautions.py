"""Sentences that a reader of an error analysis needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.multitask_bert import metrics
from benchmarks.multitask_bert.errors.outcomes import Outcomes
from benchmarks.multitask_bert.page.document import Block, Table, Text, strong
from benchmarks.multitask_bert.records.rows import CONSTANT, Run, metric_title
from benchmarks.multitask_bert.significance import LEVEL, MIN_COUNT, NUM_ERRORS, Verdict

# A share of predictions of one class, from which on little else is learned.
NEARLY_ALL = 0.95
# The record rounds scores to six digits.
METRIC_TOLERANCE = 1e-3


def remarks(run: Run, outcomes: Sequence[Outcomes], findings: Sequence[Block]) -> Iterator[Text]:
    """Give what a reader has to know, the gravest first."""
    for each in outcomes:
        if each.is_degenerate:
            yield degenerate(each)
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
    total, judged, named = comparisons(findings)
    yield (
        f"Of {total} comparisons below, {judged} have examples enough to tell and "
        f"{named} are named; chance alone would name about {LEVEL * judged:.0f}."
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


def comparisons(findings: Sequence[Block]) -> tuple[int, int, int]:
    """Count the comparisons, those with examples enough, and those that are named."""
    rows = (row for block in findings if isinstance(block, Table) for row in block.rows)
    verdicts = [cell for row in rows for cell in row if isinstance(cell, Verdict)]
    judged = [verdict for verdict in verdicts if verdict is not Verdict.TOO_FEW]
    named = [verdict for verdict in judged if verdict is not Verdict.NOISE]
    return len(verdicts), len(judged), len(named)


def degenerate(outcomes: Outcomes) -> Text:
    """Tell that predictions are all one value."""
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
