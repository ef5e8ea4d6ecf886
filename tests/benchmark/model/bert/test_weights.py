"""Loaded checkpoints against transformers' BertModel on the same files, and all that is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from benchmarks.multitask_bert.model.bert.files import CheckpointError
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.bert.weights import load_encoder
from tests.benchmark.model.bert.checkpoints import CONFIG, assert_holds, refusal

CLOSE = {"rtol": 0, "atol": 1e-5}


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    save_file(edit({name: t.clone() for name, t in load_file(path).items()}), path)


def assert_parity(encoder, reference, max_length):
    """Equal outputs and gradients, with padding and token types."""
    encoder.eval()
    reference.eval()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, encoder.config.vocab_size, (5, max_length), generator=generator)
    types = torch.randint(0, 2, ids.shape, generator=generator)
    lengths = torch.tensor([max_length, 1, max_length // 2, max_length - 1, 3])
    mask = torch.arange(max_length) < lengths[:, None]
    hidden, pooled = encoder(ids, mask, types)
    theirs = reference(input_ids=ids, attention_mask=mask.long(), token_type_ids=types)
    torch.testing.assert_close(hidden[mask], theirs.last_hidden_state[mask], **CLOSE)
    torch.testing.assert_close(pooled, theirs.pooler_output, **CLOSE)

    def loss(hidden, pooled):
        return hidden[mask].square().mean() + hidden[:, 0].sum(1).mean() + pooled.sum(1).mean()

    loss(hidden, pooled).backward()
    loss(theirs.last_hidden_state, theirs.pooler_output).backward()
    grads = to_bert_names({name: p.grad for name, p in encoder.named_parameters()})
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(
            grads.pop(name), parameter.grad, msg=lambda m, n=name: f"{n}: {m}", **CLOSE
        )
    assert not grads


def test_parity_with_bert_model(original):
    encoder, _ = load_encoder(str(original))
    assert encoder.training
    assert_holds(encoder, load_file(original / "model.safetensors"))
    assert_parity(encoder, BertModel.from_pretrained(original), 14)


def test_parity_with_bert_model_on_a_real_checkpoint(minilm):
    encoder, _ = load_encoder(str(minilm))
    assert_parity(encoder, BertModel.from_pretrained(minilm), 40)


def test_loading_leaves_the_random_state_alone(original):
    before = torch.get_rng_state()
    load_encoder(str(original))
    assert torch.equal(torch.get_rng_state(), before)


def test_rates_come_from_the_checkpoint_or_the_caller(original):
    encoder, _ = load_encoder(str(original))
    assert (encoder.hidden_dropout, encoder.attention_dropout) == (0.2, 0.3)
    encoder, _ = load_encoder(str(original), hidden_dropout=0.0, attention_dropout=0.5)
    assert (encoder.hidden_dropout, encoder.attention_dropout) == (0.0, 0.5)
    assert encoder.config.attention_dropout == 0.5
    with pytest.raises(ValueError, match=r"^hidden_dropout must be a number in \[0, 1\), got 2"):
        load_encoder(str(original), hidden_dropout=2)


def test_keys_that_every_bert_shares_may_be_absent(folder):
    path = folder / "config.json"
    kept = dict(list(CONFIG.items())[:6])
    path.write_text(json.dumps(kept))
    encoder, _ = load_encoder(str(folder))
    assert (encoder.hidden_dropout, encoder.attention_dropout) == (0.1, 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_point_weights_become_float32(folder, dtype):
    edit_tensors(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    encoder, _ = load_encoder(str(folder))
    assert_holds(encoder, load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old", [False, True], ids=["weight and bias", "gamma and beta"])
def test_names_of_other_versions_are_understood(folder, prefix, old):
    def rename(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            if old:
                name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
                name = name.replace("LayerNorm.bias", "LayerNorm.beta")
            renamed[prefix + name] = tensor
        renamed[prefix + "embeddings.position_ids"] = torch.arange(14)[None]
        renamed["cls.predictions.bias"] = torch.zeros(20)
        renamed["cls.predictions.transform.LayerNorm.gamma"] = torch.zeros(12)
        renamed["cls.seq_relationship.weight"] = torch.zeros(2, 12)
        return renamed

    tensors = load_file(folder / "model.safetensors")
    edit_tensors(folder, rename)
    encoder, _ = load_encoder(str(folder))
    assert_holds(encoder, tensors)


def without(*names):
    return lambda tensors: {name: t for name, t in tensors.items() if name not in names}


def with_tensors(**extra):
    return lambda tensors: tensors | {name.replace("__", "."): t for name, t in extra.items()}


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("edit", "culprits"),
    [
        (without(QUERY), [f"1 missing: {QUERY}"]),
        (
            without("pooler.dense.bias", "pooler.dense.weight"),
            ["2 missing: pooler.dense.weight, pool"],
        ),
        (
            lambda tensors: without(*[name for name in tensors if "layer.1" in name])(tensors),
            ["16 missing: encoder.layer.1.", " and 13 more"],
        ),
        (
            with_tensors(classifier__weight=torch.ones(2, 12)),
            ["1 left over: classifier.weight"],
        ),
        (
            with_tensors(encoder__layer__2__output__dense__bias=torch.ones(12)),
            ["1 left over: encoder.layer.2.output.dense.bias"],
        ),
        (with_tensors(cls__other=torch.ones(1)), ["1 left over: cls.other"]),
        (
            with_tensors(**{"break\nin a name": torch.ones(1)}),
            ["1 left over: break in a name"],
        ),
        (
            with_tensors(**{QUERY: torch.ones(12, 11)}),
            [f"1 of a wrong shape: {QUERY} [12, 11] for [12, 12]"],
        ),
        (
            with_tensors(**{QUERY: torch.ones(144)}),
            [f"1 of a wrong shape: {QUERY} [144] for [12, 12]"],
        ),
        (
            with_tensors(**{QUERY: torch.ones(12, 12, dtype=torch.int8)}),
            [f"1 not floating point: {QUERY} I8"],
        ),
        (
            with_tensors(**{"bert." + QUERY: torch.ones(12, 12)}),
            ["1 stored twice: ", QUERY, "bert." + QUERY],
        ),
        (
            with_tensors(embeddings__LayerNorm__gamma=torch.ones(12)),
            ["1 stored twice: ", "embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"],
        ),
        (
            lambda tensors: with_tensors(a=torch.ones(1))(without(QUERY)(tensors)),
            [f"1 missing: {QUERY}; 1 left over: a;"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, edit, culprits):
    edit_tensors(folder, edit)
    message = refusal(folder)
    assert all(culprit in message for culprit in ["model.safetensors", *culprits]), message


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model_type": "roberta"}, "model_type must be 'bert', got 'roberta'"),
        ({"hidden_act": "gelu_new"}, "hidden_act must be 'gelu', got 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"is_decoder": True}, "is_decoder must be False, got True"),
        ({"vocab_size": "20"}, "vocab_size must be a positive integer, got '20'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads (5)"),
        ({"intermediate_size": 18.0}, "intermediate_size must be a positive integer, got 18.0"),
        ({"max_position_embeddings": None}, "max_position_embeddings must be a positive integer"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps must be a positive number, got 'tiny'"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob must be a number in [0, 1), got 1.5"),
        ({"attention_probs_dropout_prob": []}, "attention_probs_dropout_prob must be a number"),
        ({"pad_token_id": 20}, "pad_token_id must be a token id below vocab_size (20), got 20"),
        ({"hidden_size": 24}, "model.safetensors must hold"),
        ({"vocab_size": 11}, "vocab.txt: every token id must be below config.json's vocab_size"),
    ],
)
def test_a_config_of_another_model_is_refused(folder, changes, rule):
    edit_config(folder, **changes)
    message = refusal(folder)
    assert rule in message, message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not readable as JSON (Expecting property name"),
        (b"\xff\xfe{}", "is not readable as JSON ('utf-8' codec"),
        (b"", "is not readable as JSON (Expecting value"),
        (b"[1]", "must hold a JSON object, got a list"),
        (
            b'{"hidden_size": 12}',
            "vocab_size, num_hidden_layers, num_attention_heads and 1 more missing",
        ),
    ],
)
def test_a_damaged_config_is_refused(folder, content, reason):
    (folder / "config.json").write_bytes(content)
    message = refusal(folder)
    assert f"config.json {reason}" in message.replace("config.json:", "config.json"), message


@pytest.mark.parametrize("size", [0, 5, 8, 1000, -1], ids=str)
def test_a_truncated_file_is_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path} is not readable as safetensors (" in refusal(folder)


def test_a_flipped_bit_in_the_header_is_refused_or_harmless(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    intact = path.read_bytes()
    end = 8 + int.from_bytes(intact[:8], "little")
    positions = range(0, end, 7)
    messages = []
    for position in positions:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << position % 7
        path.write_bytes(damaged)
        try:
            encoder, _ = load_encoder(str(folder))
        except CheckpointError as error:
            messages.append(str(error))
        else:
            # Such as a bit of the free text in the metadata.
            assert_holds(encoder, tensors)
    assert all(str(path) in message and "\n" not in message for message in messages)
    assert len(messages) > 0.9 * len(positions)
