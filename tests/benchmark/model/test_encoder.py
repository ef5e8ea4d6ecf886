"""minBERT against transformers' BertModel with the same weights: outputs, gradients and dropout."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.multitask_bert.model import packing
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert

CONFIGS = {
    "one head": EncoderConfig(31, 8, 1, 1, 12, max_positions=9, type_vocab_size=1),
    "two layers": EncoderConfig(57, 24, 2, 4, 40, max_positions=16, pad_token_id=3),
    "three layers": EncoderConfig(
        80, 36, 3, 12, 30, max_positions=11, type_vocab_size=3, layer_norm_eps=1e-3
    ),
}
# Lengths of the real tokens of a batch of 4; "holes" has padding in the middle, as two separately
# padded sentences side by side do.
MASKS = {
    "none": None,
    "full": [[1] * 9] * 4,
    "ragged": [[1] * length + [0] * (9 - length) for length in (9, 1, 4, 7)],
    "holes": [
        [1] * a + [0] * (4 - a) + [1] * b + [0] * (5 - b)
        for a, b in ((4, 5), (1, 3), (2, 1), (3, 5))
    ],
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Tensors this small gain nothing from a second thread, and wait for it on a busy machine.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True, params=["padded", "rows"])
def attention(request, monkeypatch):
    """Both ways to attend, each for every batch with padding: these are too small to need rows."""
    scores = {"padded": 10**9, "rows": -1}
    monkeypatch.setattr(packing, "_SCORES_PER_ROW", scores[request.param])


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def make_reference(config, dtype=torch.float64, seed=0):
    """A BertModel in eval mode whose every parameter is random, biases and norms too."""
    torch.manual_seed(seed)
    reference = BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            type_vocab_size=config.type_vocab_size,
            layer_norm_eps=config.layer_norm_eps,
            hidden_dropout_prob=config.hidden_dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            pad_token_id=config.pad_token_id,
        )
    )
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    return reference.to(dtype).eval()


def make_twins(config, dtype=torch.float64):
    """Our encoder and a BertModel with equal weights, in eval mode."""
    reference = make_reference(config, dtype)
    ours = MinBert(config).to(dtype).eval()
    theirs = dict(reference.named_parameters())
    targets = to_bert_names({name: p.detach() for name, p in ours.named_parameters()})
    assert targets.keys() == theirs.keys()
    for name, target in targets.items():
        target.copy_(theirs[name].detach())
    return ours, reference


def make_inputs(config, mask="ragged", types=True):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (4, 9), generator=generator)
    token_types = torch.randint(0, config.type_vocab_size, (4, 9), generator=generator)
    rows = MASKS[mask]
    return ids, None if rows is None else torch.tensor(rows), token_types if types else None


def call_reference(reference, ids, mask, types):
    output = reference(input_ids=ids, attention_mask=mask, token_type_ids=types)
    return output.last_hidden_state, output.pooler_output


def loss_of(hidden, pooled, mask):
    """A random linear function of every output that counts; its gradients are of the order of 1."""
    generator = torch.Generator().manual_seed(2)
    real = torch.ones(hidden.shape[:2]) if mask is None else mask
    at_hidden = torch.randn(hidden.shape, generator=generator).to(hidden) * real.unsqueeze(-1)
    at_pooled = torch.randn(pooled.shape, generator=generator).to(pooled)
    return 0.1 * ((hidden * at_hidden).sum() + (pooled * at_pooled).sum())


@pytest.mark.parametrize("types", [False, True], ids=["types 0", "types"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_outputs_and_gradients_equal_those_of_bert_model(config, dtype, mask, types):
    ours, reference = make_twins(config, dtype)
    ids, mask, types = make_inputs(config, mask, types)
    hidden, pooled = ours(ids, mask, types)
    their_hidden, their_pooled = call_reference(reference, ids, mask, types)
    close = {"rtol": 0, "atol": TOLERANCES[dtype]}
    real = ... if mask is None else mask.bool()
    torch.testing.assert_close(hidden[real], their_hidden[real], **close)
    torch.testing.assert_close(pooled, their_pooled, **close)

    loss_of(hidden, pooled, mask).backward()
    loss_of(their_hidden, their_pooled, mask).backward()
    grads = to_bert_names({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in reference.named_parameters():
        assert parameter.grad.any() or name.endswith("key.bias"), (
            f"{name} has no gradient to compare"
        )
        torch.testing.assert_close(
            grads[name], parameter.grad, msg=lambda m, n=name: f"{n}: {m}", **close
        )


def train_with_dropout(ours, reference, hidden, attention):
    ours.train().hidden_dropout = hidden
    ours.attention_dropout = attention
    for module in reference.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = hidden
    for layer in reference.encoder.layer:
        layer.attention.self.dropout.p = attention


RATES = pytest.mark.parametrize(("hidden", "attending"), [(0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])


@RATES
@pytest.mark.parametrize("mask", ["none", "full"])
def test_dropout_falls_where_it_does_in_bert_model(config, hidden, attending, mask):
    ours, reference = make_twins(config)
    ids, mask, types = make_inputs(config, mask)
    train_with_dropout(ours, reference, hidden, attending)
    # The same draws in the same order mean the same rates at the same places.
    torch.manual_seed(5)
    theirs, _ = call_reference(reference, ids, mask, types)
    torch.manual_seed(5)
    dropped = ours(ids, mask, types).hidden
    torch.testing.assert_close(dropped, theirs, rtol=0, atol=1e-10)
    assert not torch.allclose(dropped, ours.eval()(ids, mask, types).hidden)


@RATES
@pytest.mark.parametrize("mask", ["ragged", "holes"])
def test_dropout_beside_padding(config, hidden, attending, mask, monkeypatch):
    """Without the draws for padding, other numbers are drawn: here each value decides for itself,
    by its third decimal, whether it is dropped."""

    def dropout(values, p=0.5, training=True, inplace=False):
        keep = (1e3 * values).abs().floor() % 10 >= 10 * p * training
        return values * keep / (1 - p * training)

    ours, reference = make_twins(config)
    reference.set_attn_implementation("eager")
    ids, mask, types = make_inputs(config, mask)
    train_with_dropout(ours, reference, hidden, attending)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    if attending:  # the dropout inside torch's own attention is out of reach
        monkeypatch.setattr(packing, "_SCORES_PER_ROW", -1)
    theirs, _ = call_reference(reference, ids, mask, types)
    dropped = ours(ids, mask, types).hidden
    real = mask.bool()
    torch.testing.assert_close(dropped[real], theirs[real], rtol=0, atol=1e-10)
    assert not torch.allclose(dropped, ours.eval()(ids, mask, types).hidden)


@pytest.mark.parametrize("mask", ["full", "ragged", "holes"])
def test_a_seed_decides_what_is_dropped(config, mask):
    ours, _ = make_twins(config)
    ours.train()
    hidden = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        hidden.append(ours(*make_inputs(config, mask)).hidden)
    assert torch.equal(hidden[0], hidden[1])
    assert not torch.allclose(hidden[0], hidden[2])


@pytest.mark.parametrize("mask", ["full", "ragged", "holes"])
def test_places_are_those_of_the_mask(config, mask):
    ours, _ = make_twins(config)
    ids, mask, types = make_inputs(config, mask)
    noise = torch.randn(*ids.shape, config.hidden_size, dtype=torch.float64)
    places = torch.tensor([n for n, there in enumerate(mask.flatten().tolist()) if there])
    given = ours(ids, mask, types, noise, places)
    found = ours(ids, mask, types, noise)
    assert torch.equal(given.hidden, found.hidden)
    assert not given.hidden[~mask.bool()].any()


@pytest.mark.parametrize("mask", MASKS)
def test_noise_is_added_to_the_embedded_tokens(config, mask):
    ours, _ = make_twins(config)
    ids, mask, types = make_inputs(config, mask)
    noise = torch.randn(*ids.shape, config.hidden_size, dtype=torch.float64)
    noisy = ours(ids, mask, types, noise).hidden
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    ours.embeddings.register_forward_hook(lambda _, __, embedded: embedded + noise[real])
    assert torch.equal(noisy, ours(ids, mask, types).hidden)


def test_linear_layers_see_no_padding(config):
    ours, _ = make_twins(config)
    ids, mask, types = make_inputs(config)
    rows = []
    for module in ours.layers.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1]))
    ours(ids, mask, types)
    assert set(rows) == {(21,)}  # 9 + 1 + 4 + 7


def test_rates_of_zero_make_training_equal_evaluation(config):
    ours, _ = make_twins(config)
    inputs = make_inputs(config)
    expected = ours(*inputs)
    ours.train().hidden_dropout = ours.attention_dropout = 0.0
    for out, want in zip(ours(*inputs), expected, strict=True):
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


def test_padding_changes_nothing(config):
    ours, _ = make_twins(config)
    ids, mask, types = make_inputs(config)
    real = mask.bool()
    hidden, pooled = ours(ids, mask, types)
    others = torch.where(real, ids, (ids + 1) % config.vocab_size)
    other_hidden, other_pooled = ours(others, mask, types)
    torch.testing.assert_close(other_hidden[real], hidden[real], rtol=0, atol=0)
    torch.testing.assert_close(other_pooled, pooled, rtol=0, atol=0)
    for row, length in enumerate(real.sum(1).tolist()):
        alone = ours(ids[row : row + 1, :length], None, types[row : row + 1, :length])
        torch.testing.assert_close(alone.hidden[0], hidden[row, :length], rtol=0, atol=1e-12)


def test_a_mask_may_be_bool_integer_or_float(config):
    ours, _ = make_twins(config)
    ids, mask, types = make_inputs(config)
    expected = ours(ids, mask.bool(), types).hidden
    for dtype in (torch.int64, torch.uint8, torch.float32):
        assert torch.equal(ours(ids, mask.to(dtype), types).hidden, expected)


def test_a_row_of_padding_alone_stays_finite(config):
    ours, _ = make_twins(config)
    ids, mask, _ = make_inputs(config)
    mask[1] = 0
    for mode in (True, False):
        output = ours.train(mode)(ids, mask)
        (output.hidden.sum() + output.pooled.sum()).backward()
        assert all(p.grad.isfinite().all() for p in ours.parameters())


def test_the_padding_token_gets_no_gradient(config):
    ours, _ = make_twins(config)
    ids = torch.full((2, 5), config.pad_token_id)
    ids[:, 0] = 1
    ours(ids).hidden.square().sum().backward()
    grad = ours.embeddings.word.weight.grad
    assert not grad[config.pad_token_id].any()
    assert grad[1].any()


def test_weights_start_as_those_of_bert():
    torch.manual_seed(0)
    encoder = MinBert(EncoderConfig(500, 96, 2, 4, 160, pad_token_id=7))
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            # Four standard errors of a normal sample's mean and deviation.
            error = 4 * 0.02 / parameter.numel() ** 0.5
            assert abs(parameter.mean()) < error, name
            if parameter.shape[0] > 2:
                assert abs(parameter.std() - 0.02) < error, name
    assert not encoder.embeddings.word.weight[7].any()


def test_autocast_to_bfloat16_stays_near_float32(config):
    ours, _ = make_twins(config, torch.float32)
    inputs = make_inputs(config)
    expected = ours(*inputs).pooled
    with torch.autocast("cpu", torch.bfloat16):
        pooled = ours(*inputs).pooled
    pooled.sum().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())
    # bfloat16 has 8 bits, and tanh's outputs are at most 1.
    assert 0 < (pooled - expected).abs().max() < 0.1


def test_a_copy_computes_the_same(config):
    ours, _ = make_twins(config)
    inputs = make_inputs(config)
    assert torch.equal(copy.deepcopy(ours)(*inputs).hidden, ours(*inputs).hidden)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("vocab_size", 0, "vocab_size must be a positive integer, got 0"),
        ("hidden_size", 12.0, "hidden_size must be a positive integer, got 12.0"),
        ("num_layers", True, "num_layers must be a positive integer, got True"),
        ("num_heads", -1, "num_heads must be a positive integer, got -1"),
        ("num_heads", 5, r"hidden_size must be a multiple of num_heads \(5\), got 24"),
        ("intermediate_size", "9", "intermediate_size must be a positive integer, got '9'"),
        ("max_positions", None, "max_positions must be a positive integer, got None"),
        ("type_vocab_size", 0, "type_vocab_size must be a positive integer, got 0"),
        ("layer_norm_eps", 0.0, "layer_norm_eps must be a positive number, got 0.0"),
        ("layer_norm_eps", float("inf"), "layer_norm_eps must be a positive number, got inf"),
        ("hidden_dropout", 1.0, r"hidden_dropout must be a number in \[0, 1\), got 1.0"),
        ("hidden_dropout", float("nan"), r"hidden_dropout must be a number in \[0, 1\), got nan"),
        ("attention_dropout", -0.1, r"attention_dropout must be a number in \[0, 1\), got -0.1"),
        ("pad_token_id", 57, r"pad_token_id must be a token id below vocab_size \(57\), got 57"),
        ("pad_token_id", None, "pad_token_id must be a token id .* got None"),
    ],
)
def test_a_config_out_of_range_is_refused(field, value, rule):
    fields = vars(CONFIGS["two layers"]) | {field: value}
    with pytest.raises(ValueError, match=f"^{rule}"):
        EncoderConfig(**fields)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((torch.ones(2, 17, dtype=int),), r"max_positions \(16\), got \[2, 17\]: truncate"),
        ((torch.ones(2, 0, dtype=int),), r"L from 1 to max_positions \(16\), got \[2, 0\]"),
        ((torch.ones(5, dtype=int),), r"input_ids must be \[B, L\] .*, got \[5\]"),
        (
            (torch.ones(2, 5, dtype=int), torch.ones(1, 5)),
            r"attention_mask must have the shape of input_ids \[2, 5\], got \[1, 5\]",
        ),
        (
            (torch.ones(2, 5, dtype=int), None, torch.ones(5, dtype=int)),
            r"token_type_ids must have the shape of input_ids \[2, 5\], got \[5\]",
        ),
    ],
)
def test_an_input_of_a_wrong_shape_is_refused(arguments, rule):
    encoder = MinBert(CONFIGS["two layers"])
    with pytest.raises(ValueError, match=rule):
        encoder(*arguments)
