"""Checks the gradients that `take` is given, and finds which parameter and task each is of."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradsurgery.gradients.memory import grad_dtype
from gradsurgery.gradients.shards import is_spread

GivenParameters = nn.Module | Mapping[str, Tensor] | Iterable[Tensor]
GivenGrads = Mapping[Any, Any] | Sequence[Any] | Iterator[Any]
GivenLosses = Tensor | Sequence[Tensor] | Mapping[Any, Tensor]
Grads = dict[Tensor, Tensor]  # by parameter

_ALL = "all of a tensor each, stacked [T, *shape], or all of a mapping or tuple for each task"


class Owners:
    """Finds the parameters to which gradients belong, by name, by place or as they are.

    Args:
        parameters: a module, parameters by name, or parameters in the order of the gradients.
            ``None`` is all of ``base``, with the names that it was given them with, if any.
        base: the optimizer whose parameters they must be.

    Raises:
        TypeError: ``parameters`` holds something else.
    """

    def __init__(self, parameters: GivenParameters | None, base: Optimizer) -> None:
        self._held = {p for group in base.param_groups for p in group["params"]}
        self._by_name: dict[str, Tensor] = {}
        if parameters is None:
            self._in_order = [p for group in base.param_groups for p in group["params"]]
            for group in base.param_groups:
                names = group.get("param_names", ())
                self._by_name.update(zip(names, group["params"], strict=False))
        elif isinstance(parameters, nn.Module):
            self._in_order = list(parameters.parameters())
            self._by_name = dict(parameters.named_parameters(remove_duplicate=False))
        elif isinstance(parameters, Mapping):
            self._by_name, self._in_order = dict(parameters), list(parameters.values())
        else:
            self._in_order = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        for parameter in self._in_order:
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    "parameters: must be a module, or tensors in a list or by name, got "
                    f"{type(parameter).__name__}; give the model"
                )

    def of(self, grads: Mapping[Any, Any] | Sequence[Any]) -> Grads:
        """Gives the gradients by parameter, without ``None`` and what needs no gradient.

        Raises:
            TypeError: a key is neither a name nor a parameter.
            ValueError: there is no such parameter, or not so many of them.
        """
        found: Grads = {}
        for parameter, grad in self._pairs(grads):
            if grad is None or not parameter.requires_grad:
                continue
            if parameter not in self._held:
                raise ValueError(
                    "grads: must be of parameters of this optimizer, found one of shape "
                    f"{tuple(parameter.shape)} that it has not; leave it out, or give its own name "
                    "or parameters= where this is a copy of the optimizer's"
                )
            if parameter in found:
                raise ValueError(
                    "grads: must name each parameter once, found two for one of shape "
                    f"{tuple(parameter.shape)}; add them up"
                )
            found[parameter] = grad
        return found

    def _pairs(self, grads: Mapping[Any, Any] | Sequence[Any]) -> Iterator[tuple[Tensor, Any]]:
        if not isinstance(grads, Mapping):
            if len(grads) != len(self._in_order):
                raise ValueError(
                    f"grads: must be one for each of {len(self._in_order)} parameters, got "
                    f"{len(grads)}; give the parameters that you differentiated by as parameters="
                )
            yield from zip(self._in_order, grads, strict=True)
            return
        for key, grad in grads.items():
            if isinstance(key, Tensor):
                yield key, grad
            elif key in self._by_name:
                yield self._by_name[key], grad
            elif not isinstance(key, str):
                raise TypeError(
                    f"grads: must be by parameter or by its name, got {type(key).__name__}"
                )
            elif self._by_name:
                raise ValueError(
                    f"grads: must be of known parameters, got {key!r}, which is none of "
                    f"{_some(self._by_name)}; give the model that it is a name in as parameters="
                )
            else:
                raise ValueError(
                    f"grads: must be by parameter where no names are known, got {key!r}; give the "
                    "model as parameters="
                )


def are_stacked(grads: Mapping[Any, Any] | Sequence[Any]) -> bool:
    """Tells gradients stacked over the tasks, a tensor for each parameter, from those of one task
    after another.

    Raises:
        TypeError: some are the one, some the other, or they are something else.
        ValueError: there are none.

    Example:
        >>> are_stacked({"weight": torch.zeros(3, 2)}), are_stacked([(torch.zeros(2),), (None,)])
        (True, False)
    """
    parts = list(grads.values()) if isinstance(grads, Mapping) else list(grads)
    if not parts:
        raise ValueError("grads: must hold at least one gradient, got none")
    for kinds, stacked in (((Tensor, type(None)), True), ((Mapping, list, tuple), False)):
        if all(isinstance(part, kinds) for part in parts):
            return stacked
    kinds_found = sorted({type(part).__name__ for part in parts})
    raise TypeError(f"grads: must be {_ALL}, got {', '.join(kinds_found)}")


def one_by_one(
    grads: Iterator[Any], names: Sequence[Hashable] | None
) -> Iterator[tuple[Hashable, Mapping[Any, Any] | Sequence[Any]]]:
    """Gives each task's name and gradients, and keeps none of them.

    Args:
        grads: of the tasks in their order, or pairs of a task's name and its gradients.
        names: of the tasks; ``None`` numbers them from 0.

    Raises:
        TypeError: a task's gradients are in no collection.
        ValueError: there are not as many as names, or none.
    """
    place, is_empty = 0, True
    for part in grads:
        is_empty = False
        if isinstance(part, tuple) and len(part) == 2 and _is_collection(part[1]):
            yield part
            continue
        if not _is_collection(part):
            raise TypeError(f"grads: must be {_ALL}, got {type(part).__name__}")
        if names is not None and place == len(names):
            raise _miscounted(names, "more")
        yield place if names is None else names[place], part
        place += 1
        del part
    if is_empty:
        raise ValueError("grads: must hold at least one gradient, got none")
    if names is not None and 0 < place < len(names):
        raise _miscounted(names, str(place))


def num_stacked(stacks: Mapping[Tensor, Tensor]) -> int:
    """Counts the tasks of stacked gradients.

    Raises:
        ValueError: there are none.
    """
    first = next(iter(stacks.values()))
    if first.dim() == 0 or len(first) == 0:
        raise ValueError(
            f"grads: must be stacked over the tasks, [T, *shape], got shape {tuple(first.shape)}"
        )
    return len(first)


def check_grad(parameter: Tensor, grad: object, num_tasks: int | None = None) -> None:
    """Refuses what cannot be a parameter's gradient.

    Args:
        parameter: whose it is said to be.
        grad: the gradient, or those of T tasks, ``[T, *shape]``.
        num_tasks: T; ``None`` where it is that of one task.

    Raises:
        TypeError: it is not a tensor.
        ValueError: its shape, type, device or layout is another than the parameter's.
    """
    if not isinstance(grad, Tensor):
        raise TypeError(f"grads: must be tensors or None, got {type(grad).__name__}")
    if is_spread(parameter) or is_spread(grad):
        raise ValueError(
            "grads: must be of parameters that are not sharded; run each task's backward in its "
            "block, `with optimizer.task(name):`"
        )
    if grad.layout != torch.strided:
        raise ValueError(
            f"grads: must be dense, got one of layout {grad.layout} and shape {tuple(grad.shape)}; "
            "build the embedding with sparse=False"
        )
    shape = tuple(parameter.shape) if num_tasks is None else (num_tasks, *parameter.shape)
    if tuple(grad.shape) != shape:
        what = "" if num_tasks is None else f" for {num_tasks} task(s)"
        raise ValueError(
            f"grads: must have shape {shape}{what} for a parameter of shape "
            f"{tuple(parameter.shape)}, got {tuple(grad.shape)}"
            + ("" if num_tasks is None else "; give tasks= the names of those that are there")
        )
    dtype = grad_dtype(parameter)
    if dtype is not None and grad.dtype != dtype:
        raise ValueError(
            f"grads: must have the type of the parameter's gradient, {dtype}, got {grad.dtype}; "
            "convert them"
        )
    if grad.device != parameter.device:
        raise ValueError(
            f"grads: must be on the parameter's device, {parameter.device}, got {grad.device}"
        )


def losses_by_task(losses: GivenLosses, names: Sequence[Hashable] | None) -> dict[Hashable, Tensor]:
    """Gives the losses by task.

    Args:
        losses: a tensor ``[T]``, or scalars by task or in the order of the tasks.
        names: the tasks, where they are known; by default those that ``losses`` names or numbers.

    Raises:
        TypeError: a loss is not a tensor.
        ValueError: there is not one scalar for each task.
    """
    if not isinstance(losses, (Tensor, Mapping, list, tuple)):
        raise TypeError(
            f"losses: must be a tensor [T], a list or a mapping, got {type(losses).__name__}"
        )
    if isinstance(losses, Tensor) and losses.dim() != 1:
        raise ValueError(f"losses: must be a tensor [T], got shape {tuple(losses.shape)}")
    if isinstance(losses, Mapping):
        given, expected = dict(losses), set(losses if names is None else names)
    else:
        in_order = range(len(losses)) if names is None else names
        given, expected = dict(zip(in_order, losses, strict=False)), set(in_order)
    if given.keys() != expected or len(losses) != len(expected):
        raise ValueError(
            f"losses: must be one for each of the tasks {list(names or ())}, got {len(losses)}"
        )
    for name, loss in given.items():
        if not isinstance(loss, Tensor):
            raise TypeError(f"losses: must be tensors, got {type(loss).__name__} for task {name!r}")
        if loss.numel() != 1:
            raise ValueError(
                f"losses: must be scalars, got shape {tuple(loss.shape)} for task {name!r}"
            )
    return given


def _is_collection(part: object) -> bool:
    return isinstance(part, (Mapping, list, tuple))


def _miscounted(names: Sequence[Hashable], number: str) -> ValueError:
    return ValueError(
        f"grads: must be of each of the {len(names)} tasks {list(names)}, got {number}; give "
        "tasks= the names of those that are there"
    )


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")
