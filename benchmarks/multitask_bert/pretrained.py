"""A BERT-format checkpoint, from a folder or from the Hugging Face hub, to our encoder.

Such a checkpoint is three things: sizes (``config.json``), weights (``model.safetensors``) and a
tokenizer (``tokenizer.json``, or ``vocab.txt`` with ``tokenizer_config.json``). Nothing is
unpickled, no file names another one, and no memory is taken for tensors that the file of weights
does not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from torch import Tensor

from benchmarks.multitask_bert.encoder import EncoderConfig, MinBert

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_TOKENIZER = "tokenizer.json"
_VOCABULARY = "vocab.txt"
_TOKENIZER_CONFIG = "tokenizer_config.json"

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

# Module of ours: the modules of BERT whose tensors, stacked by rows, are its tensors.
_MODULES = {
    "embeddings.word": ("embeddings.word_embeddings",),
    "embeddings.position": ("embeddings.position_embeddings",),
    "embeddings.token_type": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
    "pooler": ("pooler.dense",),
}
_LAYER_MODULES = {
    "attention.query_key_value": (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.expand": ("intermediate.dense",),
    "feed_forward.contract": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
# Pre-training leaves its own heads, and old versions a constant 0, 1, 2, ..., beside the encoder.
_UNUSED = re.compile(r"embeddings\.position_ids|cls\.(predictions|seq_relationship)\..+")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MAX_SIZE = 2**24  # of any dimension, above every published model's
MAX_JSON_BYTES = 2**26  # of a JSON or vocabulary file; a large tokenizer has a quarter of them
_FLOATS = ("F64", "F32", "F16", "BF16")


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it is; the message is one line."""

    def __init__(self, message: str) -> None:
        # File names, tensor names and other libraries' messages may hold line breaks, and a value
        # of the file may fill pages.
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= 1000 else f"{line[:700]} ... {line[-200:]}")


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
    folder = _find(source)
    config = _read_config(folder / _CONFIG)
    if hidden_dropout is not None:
        config = replace(config, hidden_dropout=hidden_dropout)
    if attention_dropout is not None:
        config = replace(config, attention_dropout=attention_dropout)
    tokenizer = _read_tokenizer(folder, config.vocab_size)
    return _read_weights(folder / _WEIGHTS, config), tokenizer


def to_bert_names(
    tensors: Mapping[str, Tensor],  # parameters of a MinBert, or their gradients, by our names
) -> dict[str, Tensor]:
    """Return the same numbers under BERT's names, as views.

    Example:
        >>> names = to_bert_names({"layers.3.attention.query_key_value.bias": torch.arange(6)})
        >>> names["encoder.layer.3.attention.self.key.bias"]
        tensor([2, 3])
    """
    renamed = {}
    for name, tensor in tensors.items():
        module, kind = name.rsplit(".", 1)
        if module.startswith("layers."):
            _, index, module = module.split(".", 2)
            targets = [f"encoder.layer.{index}.{target}" for target in _LAYER_MODULES[module]]
        else:
            targets = list(_MODULES[module])
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            renamed[f"{target}.{kind}"] = part
    return renamed


def _find(source: str) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists():
            raise CheckpointError(
                f"{source} is a file: give the folder that holds {_CONFIG} and {_WEIGHTS}"
            )
        folder = _fetch(source)
    if not (folder / _WEIGHTS).is_file() and (folder / "pytorch_model.bin").is_file():
        raise CheckpointError(
            f"{folder} has pytorch_model.bin but no {_WEIGHTS}: a pickle can run code when read, "
            f"so it is not loaded; if you trust it, convert it with transformers: "
            f"BertModel.from_pretrained(folder).save_pretrained(folder)"
        )
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}: give a folder or hub model in BERT format "
                f"({_CONFIG}, {_WEIGHTS}, {_TOKENIZER} or {_VOCABULARY})"
            )
    return folder


def _fetch(name: str) -> Path:
    wanted = [_CONFIG, _WEIGHTS, _TOKENIZER, _VOCABULARY, _TOKENIZER_CONFIG]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # its own, httpx's and the OS's, which share no narrower base
        raise CheckpointError(
            f"{name} is no folder here, and the Hugging Face hub did not give a model of that "
            f"name ({_summary(error)}): check the name and the connection, or give a folder"
        ) from error


def _read_config(path: Path) -> EncoderConfig:
    raw = _read_json(path)
    for key, value in _FIXED.items():
        if raw.get(key, value) != value:
            raise CheckpointError(
                f"{path}: {key} must be {value!r}, got {raw[key]!r}: only plain BERT encoders can "
                f"be loaded"
            )
    absent = [key for key in _REQUIRED if key not in raw]
    if absent:
        raise CheckpointError(f"{path}: {_some(absent)} missing: fetch the file again")
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


def _read_json(path: Path) -> dict[str, Any]:
    _check_size(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable as JSON ({_summary(error)}): fetch the file again"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"{path} must hold a JSON object, got a {type(raw).__name__}: fetch the file again"
        )
    return raw


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} must have at most {MAX_JSON_BYTES} bytes, got {size}: fetch the file again"
        )


def _read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    path = folder / _TOKENIZER
    if not path.is_file():
        path = folder / _VOCABULARY
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has neither {_TOKENIZER} nor {_VOCABULARY}: add the tokenizer files that "
            f"belong to the checkpoint"
        )
    _check_size(path)
    try:
        if path.name == _TOKENIZER:
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = Tokenizer(WordPiece.from_file(str(path), unk_token="[UNK]"))
    except BaseException as error:  # tokenizers raises nothing narrower, and panics in Rust
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{path} is not readable as a tokenizer ({_summary(error)}): fetch the file again"
        ) from error
    if path.name == _VOCABULARY:
        _complete_wordpiece(tokenizer, path)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path}: every token id must be below {_CONFIG}'s vocab_size ({vocab_size}), got "
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
        raise CheckpointError(f"{vocabulary}: {_some(absent)} missing: fetch the file again")
    path = vocabulary.with_name(_TOKENIZER_CONFIG)
    options = _read_json(path) if path.is_file() else {}
    try:
        tokenizer.normalizer = BertNormalizer(
            lowercase=options.get("do_lower_case", True),
            strip_accents=options.get("strip_accents"),
            handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        )
    except TypeError as error:
        raise CheckpointError(
            f"{path}: do_lower_case, strip_accents and tokenize_chinese_chars must be true or "
            f"false ({_summary(error)}): fetch the file again"
        ) from error
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in (*_SPECIAL, "[MASK]") if token in vocab])


def _read_weights(path: Path, config: EncoderConfig) -> MinBert:
    # Shapes come from a model without storage, so that a file that does not fit costs nothing, and
    # each tensor is then copied straight from the mapped file into its place.
    try:
        with safe_open(path, framework="pt") as file:
            _check_layers(path, config, len(file.keys()))
            with torch.device("meta"):
                encoder = MinBert(config)
            expected = to_bert_names(dict(encoder.named_parameters()))
            stored = _match(path, file, expected)
            encoder.to_empty(device="cpu")
            targets = to_bert_names({name: p.detach() for name, p in encoder.named_parameters()})
            for name, target in targets.items():
                target.copy_(file.get_tensor(stored[name]))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not readable as safetensors ({_summary(error)}): fetch the file again"
        ) from error
    return encoder


def _check_layers(path: Path, config: EncoderConfig, num_tensors: int) -> None:
    """Refuses more layers than the file can hold, before they are made."""
    if config.num_layers > num_tensors:
        raise CheckpointError(
            f"{path} must hold the tensors of the {config.num_layers} layers that {_CONFIG} "
            f"describes, got {num_tensors} tensors; save it again with "
            f"transformers.BertModel.save_pretrained"
        )


def _match(path: Path, file: Any, expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the file's own name of every expected tensor, or say what does not fit."""
    stored: dict[str, str] = {}
    left_over, twice, shape, dtype = [], [], [], []
    for own_name in file.keys():  # noqa: SIM118 (a file handle, not a mapping)
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
        tensor = file.get_slice(own_name)
        if tensor.get_shape() != list(expected[name].shape):
            shape.append(f"{own_name} {tensor.get_shape()} for {list(expected[name].shape)}")
        elif tensor.get_dtype() not in _FLOATS:
            dtype.append(f"{own_name} {tensor.get_dtype()}")
    problems = {
        "missing": [name for name in expected if name not in stored],
        "left over": left_over,
        "stored twice": twice,
        "of a wrong shape": shape,
        "not floating point": dtype,
    }
    found = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{path} must hold the tensors of the BERT encoder that {_CONFIG} describes, got "
            f"{'; '.join(found)}; save it again with transformers.BertModel.save_pretrained"
        )
    return stored


def _some(names: Iterable[str]) -> str:
    """Return the first three names, and how many more there are."""
    first, rest = list(names)[:3], list(names)[3:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")


def _summary(error: BaseException) -> str:
    return str(error).strip()[:300] or type(error).__name__
