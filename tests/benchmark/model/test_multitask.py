"""The model's outputs against values worked out by hand from its encoder, one example at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.multitask_bert.batches.tokenized import TokenizedSplit
from benchmarks.multitask_bert.batches.tokens import Batch
from benchmarks.multitask_bert.data.files import Example, Split
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.model.multitask import MultiTaskModel
from benchmarks.multitask_bert.model.tiny import word_tokenizer
from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, RecipeError

WIDTH = 8
PAIRS = (("a b c d", "b"), ("c", "d e f a"), ("e f", "e f"), ("d", "a"))
SENTENCES = ("a b c d e", "f", "b a")
EXACT = {"rtol": 0, "atol": 1e-12}  # float64: what is left is the order of summation
TOKENIZER = word_tokenizer("abcdef")
PAD, CLS, SEP = (TOKENIZER.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
LINEAR = Head()


def make_recipe(
    pair: str = "joint-sep",
    sts: Head = LINEAR,
    *,
    sst: Head = LINEAR,
    pooling: str = "pooler",
    head_dropout: float = 0.3,
) -> Recipe:
    recipe = find("smet-walker/general-linear-loss-sum")
    return replace(
        recipe,
        pairs={"quora": "joint-sep", "sts": pair},
        heads={"sst": sst, "quora": LINEAR, "sts": sts},
        pooling=pooling,
        head_dropout=head_dropout,
    )


def make_model(recipe: Recipe) -> MultiTaskModel:
    """In evaluation mode, with weights large enough for every token to matter."""
    config = EncoderConfig(
        vocab_size=TOKENIZER.get_vocab_size(),
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=2,
        intermediate_size=12,
        max_positions=16,
        hidden_dropout=0.2,
        attention_dropout=0.2,
    )
    torch.manual_seed(0)
    model = MultiTaskModel(MinBert(config), recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.double().eval()


def make_batch(pair: str, examples: tuple[tuple[str, ...], ...] = PAIRS) -> Batch:
    """All examples in one padded batch."""
    task = "sts" if len(examples[0]) == 2 else "sst"
    rows = tuple(Example(str(i), texts, 1.0) for i, texts in enumerate(examples))
    tokenized = TokenizedSplit(Split(task, "dev", rows, 0, "made here"), TOKENIZER, pair)
    return tokenized.batch(torch.arange(len(rows)))


def ids_of(text: str) -> list[int]:
    return [TOKENIZER.token_to_id(word) for word in text.split()]


def embed(encoder: MinBert, ids: list[int], pooling: str) -> Tensor:  # [D]
    """One sequence on its own: the encoder pays no heed to padding, because there is none but what
    is in ``ids``."""
    there = [number for number, token in enumerate(ids) if token != PAD]
    mask = torch.tensor([[token != PAD for token in ids]])
    hidden, pooled = encoder(torch.tensor([ids]), None if len(there) == len(ids) else mask)
    if pooling == "pooler":
        return pooled[0]
    if pooling == "cls":
        return hidden[0, 0]
    return torch.stack([hidden[0, number] for number in there]).mean(0)


def linear(layer: nn.Module, vector: Tensor) -> Tensor:
    parameters: Mapping[str, Tensor] = dict(layer.named_parameters())
    return parameters["weight"] @ vector + parameters["bias"]


def single(text: str) -> list[int]:
    return [CLS, *ids_of(text), SEP]


def joined(first: str, second: str) -> list[int]:
    return [CLS, *ids_of(first), SEP, *ids_of(second), SEP]


def end_to_end(first: str, second: str) -> list[int]:
    """Both sequences padded to the longest of the batch, one after the other."""
    rows = []
    for side, text in enumerate((first, second)):
        longest = max(len(single(pair[side])) for pair in PAIRS)
        rows += single(text) + [PAD] * (longest - len(single(text)))
    return rows


POOLINGS = pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])


@POOLINGS
@torch.no_grad()
def test_single_sentence(pooling):
    model = make_model(make_recipe(pooling=pooling))
    logits = model(make_batch("single", tuple((text,) for text in SENTENCES)))
    head = model.heads["sst"][-1]
    by_hand = [linear(head, embed(model.encoder, single(text), pooling)) for text in SENTENCES]
    torch.testing.assert_close(logits, torch.stack(by_hand), **EXACT)
    assert logits.shape == (len(SENTENCES), 5)


@POOLINGS
@pytest.mark.parametrize(
    ("pair", "sequence"), [("joint-sep", joined), ("joint-raw-ids", end_to_end)]
)
@torch.no_grad()
def test_joint_encodings(pair, sequence, pooling):
    model = make_model(make_recipe(pair, pooling=pooling))
    scores = model(make_batch(pair))
    head = model.heads["sts"][-1]
    by_hand = [linear(head, embed(model.encoder, sequence(*texts), pooling)) for texts in PAIRS]
    torch.testing.assert_close(scores, torch.cat(by_hand), **EXACT)


@POOLINGS
@torch.no_grad()
def test_siamese_concat(pooling):
    model = make_model(make_recipe("siamese-concat", pooling=pooling))
    scores = model(make_batch("siamese-concat"))
    head = model.heads["sts"][-1]
    assert head.in_features == 2 * WIDTH
    by_hand = []
    for first, second in PAIRS:
        u, v = (embed(model.encoder, single(text), pooling) for text in (first, second))
        by_hand.append(linear(head, torch.cat([u, v])))
    torch.testing.assert_close(scores, torch.cat(by_hand), **EXACT)


def cosine(u: Tensor, v: Tensor) -> float:
    return float(sum(a * b for a, b in zip(u, v, strict=True)) / (u.norm() * v.norm()))


SIMILARITIES = {
    "dot": lambda u, v: float(sum(a * b for a, b in zip(u, v, strict=True))),
    "cos": cosine,
    "relu-cos-5": lambda u, v: 5 * max(cosine(u, v), 0.0),
}


@POOLINGS
@pytest.mark.parametrize(
    ("pair", "output"),
    [("siamese-dot", "dot"), ("siamese-cos", "cos"), ("siamese-cos", "relu-cos-5")],
)
@pytest.mark.parametrize("layers", [(), ("dropout", "linear:5", "relu", "linear:6")])
@torch.no_grad()
def test_siamese_similarities(pair, output, layers, pooling):
    """The layers, where there are any, act on each side before the two are compared."""
    model = make_model(make_recipe(pair, Head(layers, output), pooling=pooling))
    scores = model(make_batch(pair))
    by_hand = []
    for texts in PAIRS:
        u, v = (embed(model.encoder, single(text), pooling) for text in texts)
        if layers:
            first, last = model.heads["sts"][1], model.heads["sts"][3]
            u, v = (linear(last, linear(first, side).clamp_min(0)) for side in (u, v))
        by_hand.append(SIMILARITIES[output](u, v))
    torch.testing.assert_close(scores, torch.tensor(by_hand, dtype=torch.float64), **EXACT)
    assert scores.shape == (len(PAIRS),)


@torch.no_grad()
def test_relu_cosine_of_opposite_and_of_equal_vectors():
    """Both ends of the scale: 0 for opposite vectors, 5 for a sentence beside itself."""
    head = Head(("linear:1",), "relu-cos-5")
    model = make_model(make_recipe("siamese-cos", head, pooling="mean"))
    u, v = (embed(model.encoder, single(text), "mean") for text in PAIRS[0])
    (layer,) = model.heads["sts"]
    # Between the two, so that one number is above zero and the other below.
    layer.bias.copy_(-layer.weight @ (u + v) / 2)
    scores = model(make_batch("siamese-cos"))
    assert scores[0].item() == 0
    assert scores[2].item() == pytest.approx(5)  # "e f" twice


@POOLINGS
@pytest.mark.parametrize(
    ("pair", "head"),
    [
        ("joint-sep", LINEAR),
        ("siamese-concat", LINEAR),
        ("siamese-dot", Head((), "dot")),
        ("siamese-cos", Head((), "relu-cos-5")),
    ],
)
@torch.no_grad()
def test_padding_never_changes_an_output(pair, head, pooling):
    """Alone, and beside longer ones on either side. ``joint-raw-ids`` is left out: by definition
    its second sentence stands where the longest first sentence of the batch ends."""
    model = make_model(make_recipe(pair, head, pooling=pooling))
    together = model(make_batch(pair))
    alone = torch.cat([model(make_batch(pair, (texts,))) for texts in PAIRS])
    torch.testing.assert_close(together, alone, **EXACT)


@POOLINGS
@torch.no_grad()
def test_padding_never_changes_a_single_sentence(pooling):
    model = make_model(make_recipe(pooling=pooling))
    examples = tuple((text,) for text in SENTENCES)
    alone = torch.cat([model(make_batch("single", (example,))) for example in examples])
    torch.testing.assert_close(model(make_batch("single", examples)), alone, **EXACT)


@torch.no_grad()
def test_ids_at_padded_positions_do_not_matter():
    model = make_model(make_recipe("siamese-cos", Head((), "relu-cos-5"), pooling="mean"))
    batch = make_batch("siamese-cos")
    before = model(batch)
    for tokens in (batch.first, batch.second):
        tokens.ids[~tokens.mask] = ids_of("f")[0]
    torch.testing.assert_close(model(batch), before, rtol=0, atol=0)


def test_layers_of_a_head():
    layers = ("dropout", "linear:D", "relu", "dropout", "linear:3", "linear:out")
    head = make_model(make_recipe(sst=Head(layers), head_dropout=0.4)).heads["sst"]
    kinds = [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.Linear]
    assert [type(layer) for layer in head] == kinds
    assert [(x.in_features, x.out_features) for x in head if isinstance(x, nn.Linear)] == [
        (WIDTH, WIDTH),
        (WIDTH, 3),
        (3, 5),
    ]


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8])
def test_dropout_rate_is_that_of_the_recipe(rate):
    model = make_model(make_recipe(head_dropout=rate))
    rates = {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)}
    assert rates == {rate}


def test_dropout_acts_in_training_alone():
    model = make_model(make_recipe(head_dropout=0.5))
    batch = make_batch("joint-sep")
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pair": "siamese-cos"}, "heads.sts.output"),
        ({"pair": "siamese-dot"}, "heads.sts.output"),
        ({"pair": "siamese-cos", "sts": Head((), "dot")}, "heads.sts.output"),
        ({"pair": "joint-sep", "sts": Head((), "relu-cos-5")}, "heads.sts.output"),
        ({"pair": "siamese-concat", "sts": Head((), "cos")}, "heads.sts.output"),
        ({"sst": Head(("linear:out",), "dot")}, "heads.sst.output"),
        ({"sst": Head(("linear:out",), "tanh-scaled")}, "heads.sst.output"),
        ({"sst": Head(())}, "heads.sst.layers"),
        ({"sst": Head(("linear:out", "linear:D"))}, "heads.sst.layers"),
        ({"sst": Head(("gelu", "linear:out"))}, "heads.sst.layers"),
        ({"sst": Head(("dropout:0.1", "linear:out"))}, "heads.sst.layers"),
        ({"sst": Head(("linear", "linear:out"))}, "heads.sst.layers"),
        ({"sst": Head(("linear:wide", "linear:out"))}, "heads.sst.layers"),
        ({"sst": Head(("linear:-3", "linear:out"))}, "heads.sst.layers"),
        ({"sst": Head(("linear:0", "linear:out"))}, "heads.sst.layers"),
        ({"pair": "siamese-concat", "sts": Head(("linear:D",))}, "heads.sts.layers"),
    ],
)
def test_a_head_that_cannot_follow_is_refused(changes, field):
    with pytest.raises(RecipeError, match=field) as refused:
        make_model(make_recipe(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("layers", [("dropout", "linear:out"), ("linear:D", "relu", "linear:out")])
def test_trainable_parameters(layers):
    model = make_model(make_recipe(sst=Head(layers)))
    everything = list(model.trainable_parameters("all"))
    heads = list(model.trainable_parameters("heads"))
    assert {id(p) for p in everything} == {id(p) for p in model.parameters()}
    assert len({id(p) for p in everything}) == len(everything)
    names = {name for name, p in model.named_parameters() if any(p is head for head in heads)}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("heads.")}
    assert len(heads) == sum(layer.startswith("linear") for layer in layers) * 2 + 4


def test_a_head_of_its_own_for_each_task():
    """A task's loss reaches its own head and the encoder, and no other head."""
    model = make_model(make_recipe("siamese-cos", Head(("linear:D",), "relu-cos-5")))
    model(make_batch("single", tuple((text,) for text in SENTENCES))).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[1] for name in reached if name.startswith("heads.")} == {"sst"}
    assert "encoder.embeddings.word.weight" in reached
