"""The encoder that a run names: a small one, or a checkpoint."""

from __future__ import annotations

from tokenizers import Tokenizer

from benchmarks.multitask_bert.model.bert.weights import load_encoder
from benchmarks.multitask_bert.model.encoder import MinBert
from benchmarks.multitask_bert.model.tiny import SIZES, tiny_encoder
from benchmarks.multitask_bert.recipes.recipe import Recipe


def make_encoder(source: str, recipe: Recipe) -> tuple[MinBert, Tokenizer]:
    """A fresh encoder with the recipe's dropout, and its tokenizer.

    Args:
        source: ``tiny``, ``narrow``, a checkpoint folder, or a hub name.
        recipe: whose dropout it gets.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    if source in SIZES:
        return tiny_encoder(recipe, SIZES[source])
    rate = recipe.encoder_dropout
    return load_encoder(source, hidden_dropout=rate, attention_dropout=rate)
