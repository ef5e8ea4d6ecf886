"""Checks the losses that `backward` is given, and names their tasks."""

from __future__ import annotations

from collections.abc import Collection, Hashable, ItemsView, Iterator, Mapping, Sequence, Set
from typing import Any

from torch import Tensor

GivenLosses = Tensor | Collection[Tensor] | Mapping[Any, Tensor]
Losses = GivenLosses | Iterator[Tensor] | Iterator[tuple[Hashable, Tensor]]


def named(
    losses: GivenLosses, tasks: Sequence[Hashable] | None, *, have_graphs: bool = True
) -> dict[Hashable, Tensor]:
    """Losses by task, every one of them checked.

    Args:
        losses: in the order of the tasks, as one tensor ``[T]`` too, or by name.
        tasks: the names, where they are declared; by default the numbers from 0 on.
        have_graphs: whether they are to be back-propagated.

    Raises:
        TypeError: a loss is not a tensor.
        ValueError: a loss is not a scalar or needs no gradient, their number is not that of the
            tasks, or there is none.
    """
    if isinstance(losses, (Mapping, ItemsView)):
        by_task = dict(losses)
    else:
        losses = _in_order(losses)
        names = range(len(losses)) if tasks is None else tasks
        if len(names) != len(losses):
            raise ValueError(
                f"losses: must be one for each of the {len(names)} tasks {list(names)}, got "
                f"{len(losses)}; give a mapping of names to losses when a task is absent"
            )
        by_task = dict(zip(names, losses, strict=True))
    if not by_task:
        raise ValueError("losses: must hold at least one loss, got none")
    for name, loss in by_task.items():
        _check(name, loss, have_graphs)
    return by_task


def one_by_one(
    losses: Iterator[Tensor] | Iterator[tuple[Hashable, Tensor]], tasks: Sequence[Hashable] | None
) -> Iterator[tuple[Hashable, Tensor]]:
    """Like :func:`named`, of a generator: checks each loss when it is asked for, and keeps none.

    Args:
        losses: of losses in the order of the tasks, or of names and losses.
        tasks: as in :func:`named`.

    Raises:
        TypeError, ValueError: as :func:`named`.
    """
    if not isinstance(losses, Iterator):
        raise TypeError(
            "losses: must be a sequence, a mapping or a generator of losses, got "
            f"{type(losses).__name__}; put them in a list"
        )
    num_losses = num_unnamed = 0
    for item in losses:
        if isinstance(item, tuple):
            name, loss = item
        else:
            known = tasks is not None and num_unnamed < len(tasks)
            name, loss = (tasks[num_unnamed] if tasks and known else num_unnamed), item
            num_unnamed += 1
        del item
        num_losses += 1
        _check(name, loss)
        yield name, loss
        del loss
    if num_losses == 0:
        raise ValueError("losses: must hold at least one loss, got none")
    if tasks is not None and 0 < num_unnamed < len(tasks):
        raise ValueError(
            f"losses: must be one for each of the {len(tasks)} tasks {list(tasks)}, got "
            f"{num_unnamed}; yield (name, loss) pairs when a task is absent"
        )


def _in_order(losses: Tensor | Collection[Tensor]) -> Sequence[Tensor]:
    """The losses of a tensor ``[T]`` or of any collection that has an order."""
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(
                f"losses: must be one for each task, got a tensor of shape {tuple(losses.shape)}; "
                "give the list of the tasks' losses from before they were summed or stacked"
            )
        return losses.unbind()
    if isinstance(losses, Set) or not isinstance(losses, Collection):
        raise TypeError(
            f"losses: must be a sequence or a mapping, got {type(losses).__name__}; "
            "put them in a list, in the order of the tasks"
        )
    return losses if isinstance(losses, Sequence) else list(losses)


def _check(name: Hashable, loss: object, has_graph: bool = True) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"losses: must be tensors, got {type(loss).__name__} for task {name!r}")
    if loss.numel() != 1:
        raise ValueError(
            f"losses: must be scalars, got shape {tuple(loss.shape)} for task {name!r}; "
            "take its mean over the examples, or give the tasks' losses from before torch.stack"
        )
    if has_graph and not loss.requires_grad:
        raise ValueError(
            f"losses: must need a gradient, that of task {name!r} does not; "
            "give a mapping without the task when its loss is a constant, else compute the loss "
            "from trainable parameters, outside torch.no_grad()"
        )


def check_one_list(losses: object, retain_graph: object, *further: object) -> None:
    """Refuses losses that are given one by one."""
    if further or not (retain_graph is None or isinstance(retain_graph, bool)):
        raise TypeError(
            f"losses: must be in one collection, got {type(losses).__name__}, "
            f"{type(retain_graph).__name__}{', ...' if further else ''}; "
            "give them in a list, as in backward([loss_a, loss_b])"
        )
