"""The multi-task model: one encoder, a way to encode pairs, and a head for each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.multitask_bert.batches.tokens import Batch, Tokens
from benchmarks.multitask_bert.model.encoder import MinBert
from benchmarks.multitask_bert.model.kept import KeptOutputs
from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, RecipeError
from benchmarks.multitask_bert.tasks import TASKS, Task


class MultiTaskModel(nn.Module):
    """minBERT with the heads of a recipe.

    Args:
        encoder: shared by the tasks; the recipe's lowest layers of it are frozen.
        recipe: pair encodings, pooling, heads and dropout rates.

    ``kept`` has the outputs of frozen layers, once assigned; without it they are made every time.

    Raises:
        RecipeError: a head that cannot follow its pair encoding, or more frozen layers than there
            are or than leave something to train.
    """

    def __init__(self, encoder: MinBert, recipe: Recipe) -> None:
        super().__init__()
        freeze(encoder, recipe)
        self.encoder = encoder
        self.kept: KeptOutputs | None = None
        self.pooling = recipe.pooling
        self.pairs = dict(recipe.pairs)
        self.heads = make_heads(recipe, encoder.config.hidden_size)
        self.outputs = {name: recipe.heads[name].output for name in recipe.tasks}

    def forward(
        self,
        batch: Batch,
        noise: Tensor | None = None,  # of noise_shape(batch)
    ) -> Tensor:  # [B] or [B, C]
        """The task's outputs: class logits ``[B, C]``, a logit ``[B]`` or a score ``[B]``.

        Args:
            batch: of one task.
            noise: added to the embedded tokens.
        """
        output = self.outputs[batch.task]
        if batch.second is None:
            outputs: Tensor = self.heads[batch.task](self.embed(batch.first, noise))
        elif self.pairs[batch.task] == "siamese-concat":
            pair = torch.cat(self._embed_both(batch.first, batch.second, noise), dim=-1)
            outputs = self.heads[batch.task](pair)
        else:
            outputs = _similarity(output, *self.embed_pair(batch, noise))
        if output == "tanh-scaled":
            outputs = 2.5 * (torch.tanh(outputs) + 1)
        return outputs.squeeze(-1) if TASKS[batch.task].num_outputs == 1 else outputs

    def embed_pair(
        self, batch: Batch, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:  # [B, D] each
        """The two vectors that a siamese task compares, after the layers of its head."""
        assert batch.second is not None
        head = self.heads[batch.task]
        u, v = self._embed_both(batch.first, batch.second, noise)
        return head(u), head(v)

    def embed(self, tokens: Tokens, noise: Tensor | None = None) -> Tensor:  # [B, D]
        """One vector a sentence (or joint pair), by the recipe's pooling."""
        below = None
        if self.kept is not None and noise is None:  # noise goes in below the frozen layers
            below = self.kept.of(self.encoder, tokens)
        hidden, pooled = self.encoder(
            tokens.ids, tokens.mask, noise=noise, places=tokens.places, below=below
        )
        if self.pooling == "pooler":
            vector: Tensor = pooled
        elif self.pooling == "cls":
            vector = hidden[:, 0]
        else:
            vector = hidden.sum(1) / tokens.mask.sum(1, keepdim=True)  # hidden is zero at padding
        return vector

    def noise_shape(self, batch: Batch) -> tuple[int, int, int]:
        """Give the shape of the noise that :meth:`forward` takes: every token of every sentence."""
        lengths = [tokens.ids.shape[1] for tokens in (batch.first, batch.second) if tokens]
        return len(lengths) * len(batch), max(lengths), self.encoder.config.hidden_size

    def trainable_parameters(self, part: str) -> Iterator[nn.Parameter]:
        """Parameters of ``all`` or of the ``heads``, apart from those of frozen layers."""
        frozen = {id(parameter) for parameter in self.frozen_parameters().values()}
        module = self.heads if part == "heads" else self
        return (parameter for parameter in module.parameters() if id(parameter) not in frozen)

    def frozen_parameters(self) -> dict[str, nn.Parameter]:
        """Name the parameters of the frozen layers, and the embeddings', as the encoder does."""
        layers = [f"layers.{number}." for number in range(self.encoder.num_frozen)]
        places = ("embeddings.", *layers) if layers else ()
        return {name: p for name, p in self.encoder.named_parameters() if name.startswith(places)}

    def _embed_both(
        self, first: Tokens, second: Tokens, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both sentences of a pair in one pass through the encoder."""
        length = max(first.ids.shape[1], second.ids.shape[1])
        pad = self.encoder.config.pad_token_id
        tokens = first.widen(length, pad) + second.widen(length, pad)
        u, v = self.embed(tokens, noise).chunk(2)
        return u, v


def make_heads(recipe: Recipe, width: int) -> nn.ModuleDict:
    """The layers of every task's head, for embeddings of a width.

    Raises:
        RecipeError: a head that cannot follow its pair encoding.
    """
    return nn.ModuleDict({name: _head(TASKS[name], recipe, width) for name in recipe.tasks})


def freeze(encoder: MinBert, recipe: Recipe) -> None:
    """Freezes the recipe's lowest layers of an encoder.

    Raises:
        RecipeError: there are fewer, or nothing would be left to train but the heads.
    """
    number, there = recipe.frozen_layers, encoder.config.num_layers
    trains = any(stage.trainable == "all" and stage.epochs for stage in recipe.stages)
    # Above the last layer there is the pooler, where the recipe uses it.
    most = there - 1 if trains and recipe.pooling != "pooler" else there
    if number > most:
        remedy = "freeze fewer" if number > there else "set trainable=heads to freeze all layers"
        raise RecipeError(
            f"recipe {recipe.id}: frozen_layers must be from 0 to {most} for this encoder of "
            f"{there} layers, got {number}; {remedy}"
        )
    encoder.num_frozen = number


def _similarity(output: str, u: Tensor, v: Tensor) -> Tensor:  # [B, D], [B, D] -> [B, 1]
    """Similarity of two embeddings, one number a pair."""
    if output == "dot":
        return (u * v).sum(-1, keepdim=True)
    cosine = F.cosine_similarity(u, v).unsqueeze(-1)
    if output == "relu-cos-5":
        return 5 * F.relu(cosine)
    return 5 * cosine if output == "cos-5" else cosine


_SIMILARITIES = {"siamese-dot": ("dot",), "siamese-cos": ("cos", "relu-cos-5", "cos-5")}


def _head(task: Task, recipe: Recipe, width: int) -> nn.Sequential:
    """The layers of a task's head."""
    head: Head = recipe.heads[task.name]
    pair = recipe.pairs.get(task.name, "") if task.is_pair else ""
    compares = pair in _SIMILARITIES
    scores = ("none", "tanh-scaled") if task.kind == "score" else ("none",)
    supported = _SIMILARITIES.get(pair, scores)
    if head.output not in supported:
        raise RecipeError(
            f"recipe {recipe.id}: heads.{task.name}.output must be one of {', '.join(supported)} "
            f"for {pair or 'one embedding'}, got {head.output!r}"
        )
    current = 2 * width if pair == "siamese-concat" else width
    layers: list[nn.Module] = []
    widths: Mapping[str, int] = {"D": width, "out": task.num_outputs}
    for layer in head.layers:
        kind, _, size = layer.partition(":")
        if kind == "dropout" and not size:
            layers.append(nn.Dropout(recipe.head_dropout))
        elif kind == "relu" and not size:
            layers.append(nn.ReLU())
        elif kind == "linear" and (size in widths or (size.isdecimal() and int(size) > 0)):
            target = widths[size] if size in widths else int(size)
            layers.append(nn.Linear(current, target))
            current = target
        else:
            raise RecipeError(
                f"recipe {recipe.id}: heads.{task.name}.layers must hold dropout, relu or "
                f"linear:WIDTH, got {layer!r}"
            )
    if not compares and current != task.num_outputs:
        raise RecipeError(
            f"recipe {recipe.id}: heads.{task.name}.layers must end in {task.num_outputs} "
            f"output(s) for {task.title}, found {current}; end with linear:out"
        )
    return nn.Sequential(*layers)
