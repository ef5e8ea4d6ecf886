"""The tokenizer of a checkpoint against ids by hand, and of one kind of files against the other."""

from __future__ import annotations

from tokenizers import Tokenizer

from benchmarks.multitask_bert.model.bert.weights import load_encoder
from tests.benchmark.model.bert.checkpoints import WORDS, refusal


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
