"""Prediction files in the form of the starter code, of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.multitask_bert.data.corpus import absent_file, load_corpus
from benchmarks.multitask_bert.data.files import Split
from benchmarks.multitask_bert.records.record import write_whole
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.kept_model import KeptModel, none_of


def write_predictions(
    kept: KeptModel,
    data: str | None,
    out: Path,
    splits: Sequence[str] = ("dev", "test"),
    tasks: Sequence[str] | None = None,
) -> tuple[list[Path], list[Path]]:
    """Predicts the dev and test splits with a run's best checkpoint.

    Args:
        kept: the model of a complete run.
        data: where the data are; where the run had them by default.
        out: where ``sst-dev-output.csv``, ``para-test-output.csv`` and so on are written.
        splits: of ``dev`` and ``test``.
        tasks: of the run's; all by default.

    Returns:
        The files written, and the data files that are not there.

    Raises:
        RecordError: a file of the run is damaged.
        DataError: a data file is damaged, or all of them are missing; nothing is written then.
        ValueError: the run does not have a task.
    """
    source = data or kept.data
    found: dict[tuple[str, str], Split] = {}
    lacking: list[Path] = []
    asked = kept.tasks(tasks)
    load_corpus(source, [], [])  # there is such a source
    for task in asked:
        for name in splits:
            if (path := absent_file(source, task, name)) is not None:
                lacking.append(path)
            else:
                found |= load_corpus(source, [task], [name]).splits
    if not found:
        raise none_of(source, lacking)
    written = []
    for (task, name), split in found.items():
        ids = [example.id for example in split.examples]
        path = out / f"{TASKS[task].hand_in or task}-{name}-output.csv"
        write_whole(path, prediction_file(task, ids, kept.predict(split)).encode())
        written.append(path)
    return written, lacking


def prediction_file(task: str, ids: Sequence[str], predictions: Sequence[float]) -> str:
    """The text of one file: classes as whole numbers, other outputs as 32-bit floats.

    Example:
        >>> prediction_file("quora", ["a1"], [1.0])
        'id \\t Predicted_Is_Paraphrase \\na1 , 1.0 \\n'
    """
    classes = TASKS[task].kind == "classes"
    shown = [str(int(p)) if classes else str(np.float32(p)) for p in predictions]
    rows = [f"{id} , {prediction} \n" for id, prediction in zip(ids, shown, strict=True)]
    return f"id \t {TASKS[task].hand_in_header} \n" + "".join(rows)
