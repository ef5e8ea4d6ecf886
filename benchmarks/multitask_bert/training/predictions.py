"""Prediction files in the form of the starter code, of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.multitask_bert.batches.loader import evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.data.corpus import absent_file, load_corpus
from benchmarks.multitask_bert.data.files import Split
from benchmarks.multitask_bert.model.encoders import make_encoder
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.recipes.recipe import Recipe
from benchmarks.multitask_bert.records.record import Record, RecordError, write_whole
from benchmarks.multitask_bert.tasks import TASKS
from benchmarks.multitask_bert.training.checkpoint import Origin, check_heads, load_model
from benchmarks.multitask_bert.training.evaluate import predict

# Name and header of each task's file in the starter code, its spelling included.
_NAMES = {"sst": "sst", "quora": "para", "sts": "sts", "cfimdb": "cfimdb"}
_HEADERS = {
    "sst": "Predicted_Sentiment",
    "quora": "Predicted_Is_Paraphrase",
    "sts": "Predicted_Similiary",
    "cfimdb": "Predicted_Sentiment",
}
_BATCH = 32


def write_predictions(
    folder: Path, data: str | None, out: Path, split: str | None = None
) -> tuple[list[Path], list[Path]]:
    """Predicts the dev and test splits with a run's best checkpoint.

    Args:
        folder: of a complete run.
        data: where the data are; where the run had them by default.
        out: where ``sst-dev-output.csv``, ``para-test-output.csv`` and so on are written.
        split: ``dev`` or ``test`` alone; by default both, but for the tasks whose data have no
            test file.

    Returns:
        The files written, and the test files that the data lack.

    Raises:
        RecordError: the folder is not that of a complete run, or a file of it is damaged.
        RecipeError: its recipe is none of this version's.
        DataError: a file is missing or damaged; nothing is written then.
    """
    record = Record(folder)
    if not record.exists or not record.is_complete:
        raise RecordError(
            f"{folder}: must be the folder of a complete run, found "
            f"{'an unfinished one' if record.exists else 'none'}; finish it with run --resume"
        )
    config = record.read_json("config.json")
    for key, kind in {"recipe": dict, "data": str, "encoder": str, "seed": int}.items():
        if not isinstance(config.get(key), kind):
            raise RecordError(
                f"{folder / 'config.json'}: {key} must be a {kind.__name__}, found "
                f"{type(config.get(key)).__name__}; run the recipe again"
            )
    recipe = Recipe.from_dict(config["recipe"])
    weights = folder / "model.safetensors"
    origin = Origin.of(config["recipe"], config["seed"])
    source = data or config["data"]
    splits: dict[tuple[str, str], Split] = {}
    lacking: list[Path] = []
    for name in ("dev", "test") if split is None else (split,):
        absent = {
            task: path
            for task in recipe.tasks
            if (name, split) == ("test", None) and (path := absent_file(source, task, name))
        }
        lacking += absent.values()
        present = [task for task in recipe.tasks if task not in absent]
        splits |= load_corpus(source, present, [name]).splits
    encoder, tokenizer = make_encoder(config["encoder"], recipe)
    check_heads(weights, recipe, encoder.config.hidden_size)
    model = MultiTaskModel(encoder, recipe)
    load_model(weights, model, origin)
    written = []
    for task in recipe.tasks:
        for name in ("dev", "test"):
            if (task, name) not in splits:
                continue
            examples = splits[task, name]
            tokenized = TokenizedSplit(
                examples, tokenizer, recipe.pairs.get(task, ""), recipe.max_length
            )
            found = predict(model, evaluation_batches(tokenized, _BATCH), torch.device("cpu"))
            text = prediction_file(task, [example.id for example in examples.examples], found)
            path = out / f"{_NAMES[task]}-{name}-output.csv"
            write_whole(path, text.encode())
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
    return f"id \t {_HEADERS[task]} \n" + "".join(rows)
