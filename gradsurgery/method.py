"""The door through which every method comes: what it is shown of a step, and what it gives back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradsurgery.stateful import state_of, take_back

Weighting = Callable[..., Tensor]  # gram [T, T] -> weights [T]; the names, if it has `tasks`


@dataclass(frozen=True)
class Seen:
    """One step as a method sees it: T of the N known tasks take part.

    Args:
        gram: inner products of the tasks' gradients in each of the S units that are weighted as a
            whole, ``[S, T, T]``; ``None`` for a method that does without.
        losses: ``[T]``; ``None`` unless the method asks for them, and where its weights are known
            before the losses.
        tasks: numbers of the T tasks among all N. State is kept by them, so that a task that is
            absent keeps its own.
        names: of all N tasks.
        seed: what random choices depend on, besides the step.
        step: steps done so far; a tensor where the gradients are not on a CPU.
        fused: whether fused kernels were chosen for the gradients.
        noise: relative error of the inner products, against the two lengths; ``None`` where it is
            that of their own type.
        units: numbers of the S units among all. State is kept by them too: with
            ``granularity="tensor"`` a unit takes part in the steps in which tasks share it.
    """

    gram: Tensor | None
    losses: Tensor | None
    tasks: tuple[int, ...]
    names: tuple[Hashable, ...]
    seed: int
    step: int | Tensor
    fused: bool = False
    noise: float | None = None
    units: tuple[int, ...] = (0,)

    @property
    def absent(self) -> list[Hashable]:
        """Names of the tasks that take no part."""
        present = set(self.tasks)
        return [name for number, name in enumerate(self.names) if number not in present]


class Method:
    """How T gradients become one: by T weights, of what :class:`Seen` shows.

    Attributes:
        needs_gram: whether the tasks' gradients are kept apart and their inner products taken.
            Without, the weights are those of the losses, at the price of the plain sum, and reach
            task-specific parameters too.
        needs_losses: whether the losses must be known; in the long form a block then has to run
            ``block.backward(loss)``.
        has_fixed_weights: whether each task's weight depends on its name alone.
        has_known_weights: whether each task's weight is known before the losses of the step, and
            whichever other tasks take part: by what the method keeps, the seed and the step. Then
            blocks too cost no more than the plain sum.
        is_sum: whether, moreover, every weight is 1.

    Example:
        >>> class EqualLengths(Method):
        ...     def weights(self, seen):
        ...         return 1 / seen.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        >>> gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]])
        >>> seen = Seen(gram, None, tasks=(0, 1), names=("a", "b"), seed=0, step=0)
        >>> EqualLengths().weights(seen).tolist()
        [[0.5, 1.0]]
    """

    needs_gram: bool = True
    needs_losses: bool = False
    has_fixed_weights: bool = False
    has_known_weights: bool = False
    is_sum: bool = False

    def weights(self, seen: Seen) -> Tensor:  # [S, T], or [S, T, T]
        """Gives the weights of the T tasks in each unit, or the coefficients of a projection: row i
        holds how much of every original gradient the projected gradient of task i has."""
        raise NotImplementedError

    def fixed_weight(self, name: Hashable) -> float:
        """Gives the weight of a task's loss, for a method with fixed weights."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Tells whether :meth:`learn` does anything, and so whether the losses are to be shown."""
        return type(self).learn is not Method.learn

    def learn(self, seen: Seen) -> None:
        """Takes in the losses of a step, once, when it has been taken; by default nothing.

        Backwards of a task in one step count as one loss, their sum. A loss that is not finite, as
        it is of a task that had none, must teach nothing.
        """

    def look_again(self, seen: Seen) -> None:
        """Takes in the losses of the step's examples after it, from
        :meth:`MultiTaskOptimizer.look_again`.

        Raises:
            ValueError: unless a method overrides this.
        """
        raise ValueError(
            f"look_again(): must be called for a method that looks twice, {type(self).__name__} "
            "does not; leave the call out"
        )

    def numbers(self) -> Mapping[str, Tensor]:  # [N] each
        """Gives what the method keeps of each of the N tasks, for the diagnostics to show."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Gives what a resumed training needs, of what ``torch.load(weights_only=True)`` reads."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the state back."""


class FixedWeights(Method):
    """Weights of the losses that nothing changes.

    Args:
        by_name: by name of the task; without, each is 1.
    """

    needs_gram = False
    has_fixed_weights = True

    def __init__(self, by_name: Mapping[Any, float] | None = None) -> None:
        self.by_name = by_name
        self.is_sum = by_name is None

    def fixed_weight(self, name: Hashable) -> float:
        return 1.0 if self.by_name is None else self.by_name[name]


class FromGram(Method):
    """A callable that makes T weights of a Gram matrix ``[T, T]``, asked for each unit.

    Its state is kept where it has ``state_dict`` and ``load_state_dict``. Where it has a parameter
    ``tasks``, it is told the names of the T tasks.

    Args:
        weighting: the callable.

    Raises:
        TypeError: it cannot be called, or its state could not be saved.
    """

    def __init__(self, weighting: Weighting) -> None:
        if not callable(weighting):
            raise TypeError(
                "weighting: must be a callable gram -> weights or a Method, got "
                f"{type(weighting).__name__}"
            )
        state_of(weighting)  # refused now rather than when it is saved
        self.weighting = weighting
        self._asks = _asks_for_tasks(weighting)

    def weights(self, seen: Seen) -> Tensor:  # [S, T]
        assert seen.gram is not None
        return torch.stack([self._of_one(gram, seen) for gram in seen.gram])

    def _of_one(self, gram: Tensor, seen: Seen) -> Tensor:  # [T, T] -> [T]
        num_tasks, absent = len(seen.tasks), seen.absent
        try:
            weights = self.weighting(gram, **self._told(seen))
        except (ValueError, RuntimeError, IndexError) as error:
            if not absent or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            said = " ".join(str(error).split())
            raise ValueError(
                f"weighting: must take the Gram matrix of a step without the tasks {absent}, got "
                f"{type(error).__name__} ({said}); give every task a loss, or take a weighting for "
                "any number of tasks"
            ) from error
        if not isinstance(weights, Tensor):
            raise TypeError(f"weighting: must return a tensor, got {type(weights).__name__}")
        if weights.shape != (num_tasks,):
            raise ValueError(
                f"weighting: must return {num_tasks} weights for a Gram matrix of "
                f"{num_tasks} tasks, got shape {tuple(weights.shape)}"
                + (f"; the tasks {absent} are absent in this step" if absent else "")
            )
        return weights.detach().to(gram.device, gram.dtype, non_blocking=True)

    def _told(self, seen: Seen) -> dict[str, Any]:
        return {"tasks": tuple(seen.names[task] for task in seen.tasks)} if self._asks else {}

    def state_dict(self) -> dict[str, Any]:
        return state_of(self.weighting) or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state_of(self.weighting) is not None:
            take_back(self.weighting, state)


def _asks_for_tasks(weighting: Weighting) -> bool:
    """Tells whether a callable has a parameter of the name ``tasks``."""
    # Modules are called by a method of torch that hands on whatever it gets.
    called = weighting.forward if isinstance(weighting, nn.Module) else weighting
    try:
        return "tasks" in inspect.signature(called).parameters
    except (TypeError, ValueError):  # a function of C
        return False


def check_state(method: Method, state: Mapping[str, Any]) -> None:
    """Refuses a state that a method does not take, before the method is changed.

    Raises:
        ValueError: with what the method said.
    """
    try:
        copy.deepcopy(method).load_state_dict(state)
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"state_dict: must be of an equal weighting, found another ({said}); make the "
            "optimizer with the weighting that the checkpoint was made with"
        ) from error
