"""BERT's names against the encoder's parameters."""

from __future__ import annotations

from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.bert.weights import load_encoder
from benchmarks.multitask_bert.model.encoder import MinBert


def test_bert_names_cover_every_parameter_once(original):
    encoder, _ = load_encoder(str(original))
    assert isinstance(encoder, MinBert)
    named = to_bert_names(dict(encoder.named_parameters()))
    assert sum(t.numel() for t in named.values()) == sum(p.numel() for p in encoder.parameters())
