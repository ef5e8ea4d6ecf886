"""A small checkpoint's sizes and words, its weights compared, its refusal."""

from __future__ import annotations

import pytest
import torch

from benchmarks.multitask_bert.model.bert.files import CheckpointError
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.bert.weights import load_encoder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "##s",
    "Cat",
    ",",
    "ete",
]
CONFIG = {
    "vocab_size": 20,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 18,
    "max_position_embeddings": 14,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
}


def assert_holds(encoder, tensors):
    """The encoder's weights are exactly those tensors."""
    weights = to_bert_names(dict(encoder.named_parameters()))
    assert weights.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], tensor.float()), name


def refusal(source):
    """The message with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_encoder(str(source))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    return message
