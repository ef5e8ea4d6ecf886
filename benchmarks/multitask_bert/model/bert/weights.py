"""A BERT-format checkpoint, from a folder or from the Hugging Face hub, to our encoder.

Such a checkpoint is three things: sizes (``config.json``), weights (``model.safetensors``, or
several files and ``model.safetensors.index.json``) and a tokenizer (``tokenizer.json``, or
``vocab.txt`` with ``tokenizer_config.json``). Nothing is unpickled, no file leads out of the
folder, and no memory is taken for tensors that the files of weights do not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.multitask_bert.model.bert.files import (
    CONFIG,
    CheckpointError,
    find,
    read_json,
    some,
    summary,
)
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.bert.shards import Weights, weight_files
from benchmarks.multitask_bert.model.bert.tokenizer import read_tokenizer
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert

# Key of config.json: field of EncoderConfig.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "pad_token_id": "pad_token_id",
}
_KEYS = {field: key for key, field in _FIELDS.items()}
_REQUIRED = tuple(_FIELDS)[:5]
# Any other value is another architecture, whose weights could load and mean something else.
_FIXED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

# Pre-training leaves its own heads, and old versions a constant 0, 1, 2, ..., beside the encoder.
_UNUSED = re.compile(r"embeddings\.position_ids|cls\.(predictions|seq_relationship)\..+")
MAX_SIZE = 2**24  # of any dimension, above every published model's
_FLOATS = ("F64", "F32", "F16", "BF16")


def load_encoder(
    source: str,
    *,
    hidden_dropout: float | None = None,
    attention_dropout: float | None = None,
) -> tuple[MinBert, Tokenizer]:
    """Load a pretrained encoder and its tokenizer.

    Args:
        source: a folder, or else the name of a model on the Hugging Face hub, of which only the
            files named above are fetched.
        hidden_dropout: rate to use in place of the checkpoint's.
        attention_dropout: rate to use in place of the checkpoint's.

    Returns:
        The encoder, in training mode, its weights in torch's default dtype whatever theirs was; and
        the tokenizer, set to neither pad nor truncate.

    Raises:
        CheckpointError: a file is missing or damaged, the model is no plain BERT, or a tensor is
            missing, left over or of a wrong shape.
        ValueError: a dropout rate is not in [0, 1).
    """
    folder = find(source)
    config = _read_config(folder / CONFIG)
    if hidden_dropout is not None:
        config = replace(config, hidden_dropout=hidden_dropout)
    if attention_dropout is not None:
        config = replace(config, attention_dropout=attention_dropout)
    tokenizer = read_tokenizer(folder, config.vocab_size)
    return _read_weights(weight_files(folder), config), tokenizer


def _read_config(path: Path) -> EncoderConfig:
    raw = read_json(path)
    for key, value in _FIXED.items():
        if raw.get(key, value) != value:
            raise CheckpointError(
                f"{path}: {key} must be {value!r}, got {raw[key]!r}: only plain BERT encoders can "
                f"be loaded"
            )
    absent = [key for key in _REQUIRED if key not in raw]
    if absent:
        raise CheckpointError(f"{path}: {some(absent)} missing: fetch the file again")
    for key in _FIELDS:
        if isinstance(raw.get(key), int) and raw[key] > MAX_SIZE:
            raise CheckpointError(
                f"{path}: {key} must be at most {MAX_SIZE}, got {raw[key]}: fetch the file again"
            )
    try:
        return EncoderConfig(**{field: raw[key] for key, field in _FIELDS.items() if key in raw})
    except ValueError as error:
        # The file's reader knows its keys, not our fields.
        message = re.sub(r"\w+", lambda word: _KEYS.get(word[0], word[0]), str(error))
        raise CheckpointError(f"{path}: {message}") from error


def _read_weights(paths: list[Path], config: EncoderConfig) -> MinBert:
    # Shapes come from a model without storage, so that a file that does not fit costs nothing, and
    # each tensor is then copied straight from the mapped file into its place.
    path = paths[0] if len(paths) == 1 else paths[0].parent
    try:
        with Weights(paths) as weights:
            _check_layers(path, config, len(weights.names))
            with torch.device("meta"):
                encoder = MinBert(config)
            expected = to_bert_names(dict(encoder.named_parameters()))
            stored = _match(path, weights, expected)
            encoder.to_empty(device="cpu")
            targets = to_bert_names({name: p.detach() for name, p in encoder.named_parameters()})
            for name, target in targets.items():
                target.copy_(weights.tensor(stored[name]))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not readable as safetensors ({summary(error)}): fetch the file again"
        ) from error
    return encoder


def _check_layers(path: Path, config: EncoderConfig, num_tensors: int) -> None:
    """Refuses more layers than the file can hold, before they are made."""
    if config.num_layers > num_tensors:
        raise CheckpointError(
            f"{path} must hold the tensors of the {config.num_layers} layers that {CONFIG} "
            f"describes, got {num_tensors} tensors; save it again with "
            f"transformers.BertModel.save_pretrained"
        )


def _match(path: Path, weights: Weights, expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the files' own name of every expected tensor, or say what does not fit."""
    stored: dict[str, str] = {}
    left_over, twice, shape, dtype = [], [], [], []
    for own_name in weights.names:
        name = own_name.removeprefix("bert.")
        name = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name)
        if _UNUSED.fullmatch(name):
            continue
        if name not in expected:
            left_over.append(own_name)
            continue
        if name in stored:
            twice.append(f"{stored[name]} = {own_name}")
        stored[name] = own_name
        sizes, kind = weights.form(own_name)
        if sizes != list(expected[name].shape):
            shape.append(f"{own_name} {sizes} for {list(expected[name].shape)}")
        elif kind not in _FLOATS:
            dtype.append(f"{own_name} {kind}")
    problems = {
        "missing": [name for name in expected if name not in stored],
        "left over": left_over,
        "stored twice": twice,
        "of a wrong shape": shape,
        "not floating point": dtype,
    }
    found = [f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{path} must hold the tensors of the BERT encoder that {CONFIG} describes, got "
            f"{'; '.join(found)}; save it again with transformers.BertModel.save_pretrained"
        )
    return stored
