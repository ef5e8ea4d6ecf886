"""BERT's names for the tensors of our encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Module of ours: the modules of BERT whose tensors, stacked by rows, are its tensors.
_MODULES = {
    "embeddings.word": ("embeddings.word_embeddings",),
    "embeddings.position": ("embeddings.position_embeddings",),
    "embeddings.token_type": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
    "pooler": ("pooler.dense",),
}
_LAYER_MODULES = {
    "attention.query_key_value": (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.expand": ("intermediate.dense",),
    "feed_forward.contract": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}


def to_bert_names(
    tensors: Mapping[str, Tensor],  # parameters of a MinBert, or their gradients, by our names
) -> dict[str, Tensor]:
    """Return the same numbers under BERT's names, as views.

    Example:
        >>> import torch
        >>> names = to_bert_names({"layers.3.attention.query_key_value.bias": torch.arange(6)})
        >>> names["encoder.layer.3.attention.self.key.bias"]
        tensor([2, 3])
    """
    renamed = {}
    for name, tensor in tensors.items():
        module, kind = name.rsplit(".", 1)
        if module.startswith("layers."):
            _, index, module = module.split(".", 2)
            targets = [f"encoder.layer.{index}.{target}" for target in _LAYER_MODULES[module]]
        else:
            targets = list(_MODULES[module])
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            renamed[f"{target}.{kind}"] = part
    return renamed
