"""minBERT: the BERT encoder in plain torch, of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.multitask_bert.model.packing import Packing


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes and rates of one encoder; the defaults are those that every published BERT shares.

    Args:
        vocab_size: number of token ids.
        hidden_size: width D; a multiple of ``num_heads``.
        num_layers: number of transformer layers.
        num_heads: attention heads H per layer.
        intermediate_size: width of the feed-forward network's middle.
        max_positions: longest input, in tokens.
        type_vocab_size: number of token types (segments).
        layer_norm_eps: added to the variance in every layer normalisation.
        hidden_dropout: rate in [0, 1) after the embeddings and after each sublayer.
        attention_dropout: rate in [0, 1) on the attention probabilities.
        pad_token_id: token whose embedding starts at zero and gets no gradient.

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> EncoderConfig(vocab_size=100, hidden_size=32, num_layers=2, num_heads=5,
        ...               intermediate_size=64)
        Traceback (most recent call last):
        ValueError: hidden_size must be a multiple of num_heads (5), got 32: change one of the two
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_positions",
            "type_vocab_size",
        ):
            size = getattr(self, name)
            # bool is a subclass of int, and True is no size.
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads ({self.num_heads}), "
                f"got {self.hidden_size}: change one of the two"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            rate = getattr(self, name)
            if not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"{name} must be a number in [0, 1), got {rate!r}")
        eps = self.layer_norm_eps
        if not isinstance(eps, int | float) or not 0 < eps < math.inf:
            raise ValueError(f"layer_norm_eps must be a positive number, got {eps!r}")
        pad = self.pad_token_id
        if not isinstance(pad, int) or isinstance(pad, bool) or not 0 <= pad < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be a token id below vocab_size ({self.vocab_size}), got {pad!r}"
            )


class EncoderOutput(NamedTuple):
    """Holds what the encoder returns.

    Args:
        hidden: the last layer's output per token, zero at padded positions.
        pooled: the pooler's output, made from the first token ([CLS]).
    """

    hidden: Tensor  # [B, L, D]
    pooled: Tensor  # [B, D]


class Embeddings(nn.Module):
    """Sum of the word, position and token-type embeddings, normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        input_ids: Tensor,  # [B, L]
        token_type_ids: Tensor | None,  # [B, L]
        packing: Packing,
        dropout: float,
    ) -> Tensor:  # [N, D]
        # The types are usually all 0: one row of the table, added to the few of the positions.
        rows = self.position.weight[: input_ids.shape[1]]
        if token_type_ids is None:
            rows = rows + self.token_type.weight[0]
        embedded = self.word(packing.pack(input_ids))
        embedded = embedded + packing.pack_columns(rows)
        if token_type_ids is not None:
            embedded = embedded + self.token_type(packing.pack(token_type_ids))
        return F.dropout(self.norm(embedded), dropout)


class SelfAttention(nn.Module):
    r"""Multi-head self-attention with its output projection.

    .. math:: \mathrm{softmax}(Q K^\top / \sqrt{D / H}) V

    for each of the H heads.

    ``query_key_value`` stacks the three projections by rows: first the query's D, then the key's,
    then the value's.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Tensor,  # [N, D]
        packing: Packing,
        dropout: float,
    ) -> Tensor:  # [N, D]
        projected = self.query_key_value(hidden)
        attended = packing.attend(projected.unflatten(1, (3, self.num_heads, -1)), dropout)
        merged: Tensor = self.output(attended.flatten(1))
        return merged


class FeedForward(nn.Module):
    """Two linear maps with a GELU (the exact one) between."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:  # [N, D] -> [N, D]
        contracted: Tensor = self.contract(F.gelu(self.expand(hidden)))
        return contracted


class Layer(nn.Module):
    """One transformer layer: each sublayer's output is added to its input, then normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        hidden: Tensor,  # [N, D]
        packing: Packing,
        hidden_dropout: float,
        attention_dropout: float,
    ) -> Tensor:  # [N, D]
        attended = F.dropout(self.attention(hidden, packing, attention_dropout), hidden_dropout)
        hidden = self.attention_norm(hidden + attended)
        transformed = F.dropout(self.feed_forward(hidden), hidden_dropout)
        result: Tensor = self.feed_forward_norm(hidden + transformed)
        return result


class MinBert(nn.Module):
    """BERT's encoder: embeddings, transformer layers, and a pooler on the first token.

    All real tokens of a batch go through it end to end, so that padding costs no linear layer
    anything.

    ``hidden_dropout`` and ``attention_dropout`` are plain attributes, read at every forward pass in
    training mode: assign to them to change a rate. ``num_frozen`` of the lowest layers, and with
    them the embeddings, have no dropout.

    Args:
        config: sizes and rates. The weights start as BERT's do: N(0, 0.02²) for linear maps and
            embeddings, zero for biases and for the padding token.

    Example:
        >>> encoder = MinBert(EncoderConfig(vocab_size=100, hidden_size=32, num_layers=2,
        ...                                 num_heads=4, intermediate_size=64))
        >>> input_ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
        >>> output = encoder(input_ids, input_ids != 0)
        >>> output.hidden.shape, output.pooled.shape
        (torch.Size([2, 3, 32]), torch.Size([2, 32]))

    Source: Jacob Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for
    Language Understanding", 2019.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden_dropout = config.hidden_dropout
        self.attention_dropout = config.attention_dropout
        self.num_frozen = 0
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.apply(_initialise)

    def forward(
        self,
        input_ids: Tensor,  # [B, L] int64
        attention_mask: Tensor | None = None,  # [B, L] bool or 0/1
        token_type_ids: Tensor | None = None,  # [B, L] int64
        noise: Tensor | None = None,  # [B, L, D]
        places: Tensor | None = None,  # [N] int64
        below: Tensor | None = None,  # [N, D]
    ) -> EncoderOutput:
        """Encode a batch of token ids.

        Args:
            input_ids: ``[B, L]`` token ids, L between 1 and ``config.max_positions``.
            attention_mask: ``[B, L]``, false or 0 at padding; None says that there is no padding.
            token_type_ids: ``[B, L]`` segment of each token; None says that all are 0.
            noise: ``[B, L, D]``, added to the embedded tokens.
            places: ``[N]``, where the mask, as ``[B * L]``, is true, in order; None has them looked
                up, for which a GPU makes its host wait.
            below: ``[N, D]``, of each real token what :meth:`frozen_outputs` made; None makes it.

        Raises:
            ValueError: the input is longer than ``config.max_positions``, or its shape or
                that of another argument is wrong.
        """
        if input_ids.ndim != 2 or not 1 <= input_ids.shape[1] <= self.config.max_positions:
            raise ValueError(
                f"input_ids must be [B, L] with L from 1 to max_positions "
                f"({self.config.max_positions}), got {list(input_ids.shape)}: truncate when "
                f"tokenizing"
            )
        # A mask of another shape may broadcast, and be wrong in silence.
        for name, ids in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if ids is not None and ids.shape != input_ids.shape:
                raise ValueError(
                    f"{name} must have the shape of input_ids {list(input_ids.shape)}, "
                    f"got {list(ids.shape)}: make both from the same batch"
                )
        packing = Packing(input_ids.shape, attention_mask, places)
        hidden = below
        if hidden is None:
            hidden = self.frozen_outputs(input_ids, packing, token_type_ids, noise)
        rates = (self.hidden_dropout, self.attention_dropout) if self.training else (0.0, 0.0)
        for layer in list(self.layers)[self.num_frozen :]:
            hidden = layer(hidden, packing, *rates)
        hidden = packing.pad(hidden)
        return EncoderOutput(hidden, torch.tanh(self.pooler(hidden[:, 0])))

    def frozen_outputs(
        self, ids: Tensor, packing: Packing, types: Tensor | None, noise: Tensor | None
    ) -> Tensor:  # [N, D]
        """Embed the real tokens and take them through the frozen layers, if there are any."""
        dropout = self.hidden_dropout if self.training and not self.num_frozen else 0.0
        hidden: Tensor = self.embeddings(ids, types, packing, dropout)
        if noise is not None:
            hidden = hidden + packing.pack(noise)
        for layer in list(self.layers)[: self.num_frozen]:
            hidden = layer(hidden, packing, 0.0, 0.0)
        return hidden


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
