"""The model that a finished run kept, and the data that it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer

from benchmarks.multitask_bert.batches.loader import evaluation_batches
from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.data.files import DataError, Split
from benchmarks.multitask_bert.model.encoders import make_encoder
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.recipes.recipe import Recipe
from benchmarks.multitask_bert.records.record import Record, RecordError
from benchmarks.multitask_bert.records.run import run_folders
from benchmarks.multitask_bert.training.checkpoint import Origin, check_heads, load_model
from benchmarks.multitask_bert.training.evaluate import predict

_BATCH = 32


class KeptModel:
    """The best checkpoint of a run, on the CPU; loaded when it is first asked.

    Args:
        folder: of a complete run.

    Raises:
        RecordError: the folder is not that of a complete run, or its configuration is damaged.
        RecipeError: its recipe is none of this version's.
    """

    def __init__(self, folder: Path) -> None:
        record = Record(folder)
        if not record.exists or not record.is_complete:
            raise RecordError(
                f"{folder}: must be the folder of a complete run, found "
                f"{'an unfinished one' if record.exists else 'none'}; finish it with run --resume"
            )
        self.folder = folder
        self._config = record.read_json("config.json")
        for key, kind in {"recipe": dict, "data": str, "encoder": str, "seed": int}.items():
            if not isinstance(self._config.get(key), kind):
                raise RecordError(
                    f"{folder / 'config.json'}: {key} must be a {kind.__name__}, found "
                    f"{type(self._config.get(key)).__name__}; run the recipe again"
                )
        self.recipe = Recipe.from_dict(self._config["recipe"])
        self.data: str = self._config["data"]

    @cached_property
    def _parts(self) -> tuple[MultiTaskModel, Tokenizer]:
        """The model and its tokenizer."""
        weights = self.folder / "model.safetensors"
        encoder, tokenizer = make_encoder(self._config["encoder"], self.recipe)
        check_heads(weights, self.recipe, encoder.config.hidden_size)
        model = MultiTaskModel(encoder, self.recipe)
        load_model(weights, model, Origin.of(self._config["recipe"], self._config["seed"]))
        return model, tokenizer

    def predict(self, split: Split) -> list[float]:
        """Predicts a split of one of the recipe's tasks, in its order.

        Raises:
            RecordError: the weights are missing or damaged.
            CheckpointError: the encoder's files are gone.
        """
        model, tokenizer = self._parts
        pair = self.recipe.pairs.get(split.task, "")
        tokenized = TokenizedSplit(split, tokenizer, pair, self.recipe.max_length)
        return predict(model, evaluation_batches(tokenized, _BATCH), torch.device("cpu"))

    def tasks(self, asked: Sequence[str] | None) -> list[str]:
        """Gives the recipe's tasks, or those of them that are asked for.

        Raises:
            ValueError: the recipe does not have one.
        """
        for task in asked or ():
            if task not in self.recipe.tasks:
                raise ValueError(
                    f"--tasks: must be of the run's {', '.join(self.recipe.tasks)}, got {task!r}"
                )
        return [task for task in self.recipe.tasks if not asked or task in asked]


def kept_models(folder: Path) -> list[KeptModel]:
    """Finds the runs of a folder: itself, or all complete ones below it.

    Raises:
        RecordError: none of them is complete.
        ValueError: there is no such folder.
    """
    if Record(folder).exists or not folder.is_dir():
        return [KeptModel(folder)]
    found = run_folders([folder])
    complete = [each for each in found if Record(each).is_complete]
    if not complete:
        raise RecordError(
            f"{folder}: must hold a complete run, found {len(found)} unfinished; "
            "finish one with run --resume"
        )
    return [KeptModel(each) for each in complete]


def none_of(source: str, files: Sequence[Path]) -> DataError:
    """Says that a source has none of the files that were asked for."""
    names = ", ".join(path.name for path in files)
    return DataError(f"{source}: must have one of {names}, found none; give the folder of the data")
