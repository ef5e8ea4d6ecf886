"""A corpus of a few rows and a random encoder, in the files that a real pack is made of."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.multitask_bert.data.synthetic import make_corpus, vocabulary
from benchmarks.multitask_bert.model.bert.names import to_bert_names
from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
from benchmarks.multitask_bert.tasks import TASKS

_ROWS = 12  # of every file
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WIDTH = 8


def write_data(folder: Path) -> None:
    """Writes the data files, a few rows of the built-in corpus each."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {(task, split): _ROWS for task in TASKS for split in ("train", "dev")}
    for (name, split), part in make_corpus(sizes=sizes).splits.items():
        task = TASKS[name]
        with (folder / task.files[split]).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["id", *task.text_columns, task.label_column])
            for each in part.examples:
                writer.writerow([each.id, *each.texts, f"{each.label:g}"])


def write_encoder(folder: Path) -> None:
    """Writes a BERT-format checkpoint of one layer, with the words of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*_SPECIAL, *vocabulary()]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    raw = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": _WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": _WIDTH,
    }
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    config = EncoderConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        num_layers=1,
        num_heads=2,
        intermediate_size=_WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = to_bert_names(MinBert(config).state_dict())
    contiguous = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
