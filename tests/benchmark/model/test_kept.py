"""Kept outputs of frozen layers against the layers themselves, computed each time."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.multitask_bert.batches.tokens import Tokens
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.model.kept import KeptOutputs
from benchmarks.multitask_bert.model.packing import Packing

WIDTH = 16
LENGTHS = (5, 9, 3, 9)


@pytest.fixture
def encoder() -> MinBert:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_layers": 3, "num_heads": 2, "intermediate_size": 32}
    made = MinBert(EncoderConfig(vocab_size=50, **sizes)).train()
    made.num_frozen = 2
    return made


def make_tokens(lengths=LENGTHS, seed: int = 1) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Tokens(ids.masked_fill(~mask, 0), mask)


def made_each_time(encoder: MinBert, tokens: Tokens) -> torch.Tensor:
    packing = Packing(tokens.ids.shape, tokens.mask)
    with torch.no_grad():
        return encoder.frozen_outputs(tokens.ids, packing, None, None)


def bytes_of(lengths=LENGTHS) -> int:
    return sum(length * (4 * WIDTH + 8) for length in lengths)  # outputs, and ids to find them by


def count_embedded(encoder: MinBert) -> list[int]:
    found: list[int] = []
    encoder.embeddings.register_forward_pre_hook(lambda _, args: found.append(args[0].shape[0]))
    return found


def test_they_are_what_the_layers_make(encoder):
    tokens = make_tokens()
    found = KeptOutputs().of(encoder, tokens)
    assert found is not None
    torch.testing.assert_close(found, made_each_time(encoder, tokens), rtol=0, atol=1e-6)


def test_each_input_is_made_once_and_counted(encoder):
    kept, tokens, made = KeptOutputs(), make_tokens(), count_embedded(encoder)
    first = kept.of(encoder, tokens)
    assert made == [1, 1, 1, 1]
    assert torch.equal(kept.of(encoder, tokens), first)
    assert made == [1, 1, 1, 1]
    assert kept.num_bytes == bytes_of()


def test_no_bit_depends_on_the_batch_or_on_the_bound(encoder):
    """So that a resume, which fills it in another order, goes on exactly."""
    tokens = make_tokens()
    expected = KeptOutputs().of(encoder, tokens)
    alone = [KeptOutputs().of(encoder, tokens[i : i + 1]) for i in range(len(LENGTHS))]
    assert torch.equal(torch.cat(alone), expected)
    assert torch.equal(KeptOutputs(0).of(encoder, tokens), expected)


def test_memory_stays_within_the_bound(encoder):
    bound = bytes_of((5, 9, 3)) + 1
    kept, tokens, made = KeptOutputs(bound), make_tokens(), count_embedded(encoder)
    expected = kept.of(encoder, tokens)
    assert kept.num_bytes == bound - 1
    assert torch.equal(kept.of(encoder, tokens), expected)
    assert len(made) == 5  # four of them, and again the one that found no room
    kept.of(encoder, make_tokens((9, 9), seed=2))
    assert kept.num_bytes <= bound


def test_padding_inside_a_row_is_left_to_the_batch(encoder):
    tokens = make_tokens()
    holed = tokens.mask.clone()
    holed[1, 2] = False
    kept = KeptOutputs()
    assert kept.of(encoder, Tokens(tokens.ids, holed)) is None
    assert kept.num_bytes == 0


def test_outputs_made_in_an_evaluation_can_be_trained_on(encoder):
    kept, tokens = KeptOutputs(), make_tokens((6,))
    with torch.inference_mode():
        evaluated = kept.of(encoder, make_tokens((6,)))
    below = kept.of(encoder, tokens)
    assert torch.equal(below, evaluated)
    encoder(tokens.ids, tokens.mask, below=below).hidden.sum().backward()
    assert encoder.layers[2].attention.output.weight.grad is not None
    assert encoder.layers[1].attention.output.weight.grad is None


def test_another_owner_begins_anew(encoder):
    kept, tokens = KeptOutputs(), make_tokens()
    kept.belong_to("one")
    kept.of(encoder, tokens)
    kept.belong_to("one")
    assert kept.num_bytes == bytes_of()
    kept.belong_to("another")
    assert kept.num_bytes == 0
    assert copy.deepcopy({"kept": kept})["kept"] is kept  # a copied model has the same layers


def test_bfloat16_outputs_are_those_of_bfloat16(encoder):
    tokens = make_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        found = KeptOutputs().of(encoder, tokens)
        expected = made_each_time(encoder, tokens)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    with torch.no_grad():
        assert not torch.allclose(found, made_each_time(encoder, tokens), rtol=0, atol=1e-5)
