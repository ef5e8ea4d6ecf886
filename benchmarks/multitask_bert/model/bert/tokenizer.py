"""The tokenizer of a BERT-format checkpoint."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from benchmarks.multitask_bert.model.bert.files import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCABULARY,
    CheckpointError,
    check_size,
    read_json,
    some,
    summary,
)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder, set to neither pad nor truncate.

    Args:
        folder: of the checkpoint.
        vocab_size: above every token's id.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another vocabulary.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        path = folder / VOCABULARY
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has neither {TOKENIZER} nor {VOCABULARY}: add the tokenizer files that "
            f"belong to the checkpoint"
        )
    check_size(path)
    try:
        if path.name == TOKENIZER:
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = Tokenizer(WordPiece.from_file(str(path), unk_token="[UNK]"))
    except BaseException as error:  # tokenizers raises nothing narrower, and panics in Rust
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{path} is not readable as a tokenizer ({summary(error)}): fetch the file again"
        ) from error
    if path.name == VOCABULARY:
        _complete_wordpiece(tokenizer, path)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path}: every token id must be below {CONFIG}'s vocab_size ({vocab_size}), got "
            f"{largest}: use the tokenizer that belongs to the checkpoint"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _complete_wordpiece(tokenizer: Tokenizer, vocabulary: Path) -> None:
    """Give a bare WordPiece model BERT's normalisation, word splitting and special tokens."""
    vocab = tokenizer.get_vocab()
    absent = [token for token in _SPECIAL if token not in vocab]
    if absent:
        raise CheckpointError(f"{vocabulary}: {some(absent)} missing: fetch the file again")
    path = vocabulary.with_name(TOKENIZER_CONFIG)
    options = read_json(path) if path.is_file() else {}
    try:
        tokenizer.normalizer = BertNormalizer(
            lowercase=options.get("do_lower_case", True),
            strip_accents=options.get("strip_accents"),
            handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        )
    except TypeError as error:
        raise CheckpointError(
            f"{path}: do_lower_case, strip_accents and tokenize_chinese_chars must be true or "
            f"false ({summary(error)}): fetch the file again"
        ) from error
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in (*_SPECIAL, "[MASK]") if token in vocab])
