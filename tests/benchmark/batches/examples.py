"""Splits of a few texts, and all of a split as one batch."""

import torch

from benchmarks.multitask_bert.data.files import Example, Split


def split_of(task, texts, labels=None):
    labels = [1.0] * len(texts) if labels is None else labels
    pairs = zip(texts, labels, strict=True)
    examples = [Example(str(n), tuple(text), label) for n, (text, label) in enumerate(pairs)]
    return Split(task, "train", tuple(examples), 0, "test")


def pairs_of(*pairs):
    return split_of("sts", [tuple(pair.split("|")) for pair in pairs])


def everything(tokenized):
    return tokenized.batch(torch.arange(len(tokenized)))


def places_of(mask):
    return [number for number, there in enumerate(mask.flatten().tolist()) if there]
