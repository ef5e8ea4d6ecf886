"""Small encoders and a tokenizer for the built-in corpora, and the settings that suit them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from benchmarks.multitask_bert.data.synthetic import vocabulary
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.recipes.recipe import Recipe


def settings(recipe: Recipe, lr: float = 2e-3) -> list[str]:
    """Returns what suits a random encoder of this size better than the recipe's fine-tuning does.

    Larger steps, no dropout inside, a pooling that does not rest on a pretrained [CLS], and pairs
    in one sequence, whose words a small network then aligns by position.
    """
    epochs = ["epochs=8"] if any(stage.epochs for stage in recipe.stages) else []
    joint = [task for task, pair in recipe.pairs.items() if pair == "joint-raw-ids"]
    return [
        f"lr={lr:g}",
        "batch_size=32",
        *epochs,
        "encoder_dropout=0.0",
        "head_dropout=0.1",
        "pooling=mean",
        *(f"pairs.{task}=joint-sep" for task in joint),
    ]


@dataclass(frozen=True)
class Size:
    """How large a random encoder is, and the learning rate that suits it."""

    width: int
    num_layers: int
    num_heads: int
    lr: float


TINY = Size(width=64, num_layers=2, num_heads=4, lr=2e-3)
NARROW = Size(width=4, num_layers=1, num_heads=2, lr=5e-3)
SIZES: Mapping[str, Size] = MappingProxyType({"tiny": TINY, "narrow": NARROW})


def tiny_encoder(recipe: Recipe, size: Size = TINY) -> tuple[MinBert, Tokenizer]:
    """A random encoder with the vocabulary of the built-in corpora."""
    tokenizer = word_tokenizer(vocabulary())
    config = EncoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=size.width,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        intermediate_size=2 * size.width,
        max_positions=64,
        hidden_dropout=recipe.encoder_dropout,
        attention_dropout=recipe.encoder_dropout,
    )
    return MinBert(config), tokenizer


def word_tokenizer(vocabulary: Iterable[str]) -> Tokenizer:
    """A tokenizer that gives each word of a vocabulary a token, and any other word [UNK].

    Args:
        vocabulary: lower-case words and marks of punctuation. Their ids follow those of [PAD],
            [UNK], [CLS] and [SEP], which are 0 to 3.

    Raises:
        ValueError: an entry comes twice, or is one of the special tokens.

    >>> word_tokenizer(["film", "good", "."]).encode("Good film, good.").tokens
    ['good', 'film', '[UNK]', 'good', '.']
    """
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if ids[token] != number)
        raise ValueError(
            f"vocabulary must have each word once and no special token, found {twice!r} again;"
            " leave it out"
        )
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(tokens[:4])
    return tokenizer
