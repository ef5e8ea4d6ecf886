"""The tiny encoder for the built-in corpus, trained from scratch, and the settings that suit it."""

from __future__ import annotations

from tokenizers import Tokenizer

from benchmarks.multitask_bert.batches import word_tokenizer
from benchmarks.multitask_bert.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.recipe import Recipe
from benchmarks.multitask_bert.synthetic import vocabulary


def settings(recipe: Recipe) -> list[str]:
    """What suits a random encoder of this size better than the recipe's fine-tuning does.

    Larger steps, no dropout inside, a pooling that does not rest on a pretrained [CLS], and pairs
    in one sequence, whose words a small network then aligns by position.
    """
    joint = [task for task, pair in recipe.pairs.items() if pair == "joint-raw-ids"]
    return [
        "lr=2e-3",
        "batch_size=32",
        "epochs=8",
        "encoder_dropout=0.0",
        "head_dropout=0.1",
        "pooling=mean",
        *(f"pairs.{task}=joint-sep" for task in joint),
    ]


def tiny_encoder(recipe: Recipe) -> tuple[MinBert, Tokenizer]:
    """A random encoder of 2 layers and width 64, with the built-in corpus' vocabulary."""
    tokenizer = word_tokenizer(vocabulary())
    config = EncoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        intermediate_size=128,
        max_positions=64,
        hidden_dropout=recipe.encoder_dropout,
        attention_dropout=recipe.encoder_dropout,
    )
    return MinBert(config), tokenizer
