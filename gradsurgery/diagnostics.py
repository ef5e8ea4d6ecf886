"""Keeps what the last surgery saw and did on the device until somebody reads it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradsurgery.arguments import check_integer
from gradsurgery.conflict_counts import ConflictCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Diagnostics:
    """Conflicts between the tasks' gradients: of the last surgery, and since training began.

    Every attribute is a tensor on the gradients' device. Nothing here waits for that device until
    a value is read (``.item()``, ``.tolist()``, :meth:`summary`).

    Attributes:
        tasks: names of the T tasks in the last surgery, in the order of the tensors.
        task_names: names of all N tasks met so far.
        gram: inner products of the tasks' gradients, ``[T, T]``.
        weights: what the gradients of the shared parameters were multiplied by, ``[T]``; where
            there are S > 1 units (parameter groups or tensors), ``[S, T]``.
        coefficients: how much of every original gradient each task's projected gradient holds,
            ``[T, T]`` or ``[S, T, T]``; of PCGrad alone.
        group_names: names of the K groups of parameters that are watched.
        group_grams: inner products over each group alone, ``[K, T, T]``.
        num_surgeries: surgeries recorded so far.
        num_skipped_steps: steps left out because of a gradient that was not finite.

    Example:
        >>> diagnostics = Diagnostics()
        >>> gram = torch.tensor([[18.0, -22.0], [-22.0, 38.0]])
        >>> diagnostics.record(["a", "b"], [0, 1], ["a", "b"], gram, torch.ones(2))
        >>> diagnostics
        Diagnostics(tasks=('a', 'b'), num_surgeries=1, num_skipped_steps=0; summary() has more)
        >>> diagnostics.conflicts.tolist()
        [[False, True], [True, False]]
        >>> round(diagnostics.norm_before.item() ** 2, 3)
        12.0
    """

    def __init__(self) -> None:
        self.tasks: tuple[Hashable, ...] = ()
        self.task_names: tuple[Hashable, ...] = ()
        self.group_names: tuple[str, ...] = ()
        self.num_surgeries = 0
        self.num_skipped_steps = 0
        self._nonfinite: Tensor | None = None  # [N] gradients of each task that were not finite
        self._grams: Tensor | None = None  # [S, T, T]
        self._weights: Tensor | None = None
        self._coefficients: Tensor | None = None
        self._group_grams: Tensor | None = None
        self._numbers: dict[str, Tensor] = {}  # [N] each
        self._counts = ConflictCounts()

    def __repr__(self) -> str:
        # Without a number from the device, for which a debugger would wait at every line.
        counts = f"num_surgeries={self.num_surgeries}, num_skipped_steps={self.num_skipped_steps}"
        return f"{type(self).__name__}(tasks={self.tasks}, {counts}; summary() has more)"

    def record(
        self,
        tasks: Sequence[Hashable],
        indices: Sequence[int],
        task_names: Sequence[Hashable],
        grams: Tensor | None,  # [T, T] or [S, T, T]
        weights: Tensor,  # [T] or [S, T]
        coefficients: Tensor | None = None,  # [T, T] or [S, T, T]
    ) -> None:
        """Takes note of one surgery.

        Args:
            tasks, indices: names of the T tasks that took part, and their places among all.
            task_names: names of all N tasks.
            grams: inner products, of each of S units where several are weighted as a whole.
            weights: what the gradients are multiplied by.
            coefficients: the projected gradients in terms of the original ones.
        """
        self.tasks, self.task_names = tuple(tasks), tuple(task_names)
        num_tasks = len(self.tasks)
        self._grams = None if grams is None else grams.view(-1, num_tasks, num_tasks)
        self._weights = weights.view(-1, num_tasks)
        self._coefficients = coefficients
        self.num_surgeries += 1
        if grams is None:
            return
        self._counts.add(grams, indices, len(task_names))

    def record_groups(self, names: Sequence[str], grams: Tensor | None) -> None:  # [K, T, T]
        """Takes note of the inner products over groups of parameters in the same surgery."""
        self.group_names, self._group_grams = tuple(names), grams

    def record_numbers(self, numbers: Mapping[str, Tensor]) -> None:
        """Takes note of what a method keeps of each of the N tasks, ``[N]`` each."""
        self._numbers = dict(numbers)

    def count_nonfinite(self, failed: Tensor) -> None:  # [N]
        """Counts a gradient of each of the N tasks that ``failed``, ``[N]`` booleans."""
        if self._nonfinite is not None and len(self._nonfinite) == len(failed):
            self._nonfinite += failed
            return
        counts = failed.to(torch.int64, copy=True)
        if self._nonfinite is not None:
            counts[: len(self._nonfinite)] += self._nonfinite
        self._nonfinite = counts

    @property
    def num_nonfinite(self) -> Tensor:  # [N]
        """Gradients of each task that were not finite; not with ``on_nonfinite="propagate"``."""
        return _recorded(self._nonfinite, "a gradient was checked; choose an on_nonfinite")

    @property
    def gram(self) -> Tensor:  # [T, T]
        return _recorded(self._grams).sum(0)

    @property
    def weights(self) -> Tensor:  # [T] or [S, T]
        weights = _recorded(self._weights)
        return weights[0] if len(weights) == 1 else weights

    @property
    def coefficients(self) -> Tensor:  # [T, T] or [S, T, T]
        found = _recorded(self._coefficients, "a surgery by projection; only PCGrad projects")
        return found[0] if found.ndim == 3 and len(found) == 1 else found

    @property
    def group_grams(self) -> Tensor:  # [K, T, T]
        return _recorded(self._group_grams, "a surgery with groups; call optimizer.watch() first")

    @property
    def numbers(self) -> dict[str, Tensor]:  # [N] each
        """Numbers that the method keeps of each of ``task_names``, such as ``"log_variance"``."""
        return {name: numbers.clone() for name, numbers in self._numbers.items()}

    @property
    def norms(self) -> Tensor:  # [T]
        """Norm of each task's gradient, ``[T]``, in the units of the loss per parameter."""
        return self.gram.diagonal().sqrt()

    @property
    def norms_after(self) -> Tensor:  # [T]
        """Norm of each task's gradient after its projection, ``[T]``; of PCGrad alone."""
        grams = _recorded(self._grams)
        coefficients = self.coefficients.to(grams.dtype).view_as(grams)
        squared = (coefficients @ grams * coefficients).sum((0, -1))
        return squared.clamp_min(0).sqrt()

    @property
    def cosines(self) -> Tensor:  # [T, T]
        """Cosines between the tasks' gradients, ``[T, T]``; 0 for a gradient that is all zero."""
        return _cosines(self.gram)

    @property
    def group_cosines(self) -> Tensor:  # [K, T, T]
        """Cosines over each watched group of parameters alone, ``[K, T, T]``."""
        return _cosines(self.group_grams)

    @property
    def conflicts(self) -> Tensor:  # [T, T]
        """Tells which pairs had a negative inner product, ``[T, T]`` booleans."""
        return (self.gram < 0).fill_diagonal_(False)

    @property
    def norm_before(self) -> Tensor:  # []
        """Norm of the plain sum of the tasks' gradients."""
        return self.gram.sum().clamp_min(0).sqrt()

    @property
    def norm_after(self) -> Tensor:  # []
        """Norm of the update that the weights make of them."""
        grams = _recorded(self._grams)
        weights = _recorded(self._weights).to(grams.dtype).unsqueeze(-1)  # [S, T, 1]
        return (weights * (grams @ weights)).sum().clamp_min(0).sqrt()

    @property
    def conflict_rate(self) -> Tensor:  # [N, N]
        """Share of the surgeries of two tasks in which they conflicted; NaN if they never met."""
        met, conflicted = self._counts.read()
        return _recorded(conflicted) / _recorded(met)

    def summary(self) -> dict[str, float]:
        """The numbers as a flat dictionary for a logger, read in one wait for the device.

        Returns:
            ``norm_before``, ``norm_after``, ``norm/a``, ``weight/a`` (the mean over the units),
            ``cosine/a~b``, ``conflict_rate/a~b``; of PCGrad ``norm_after/a``; :attr:`numbers`, as
            ``log_variance/a``; ``cosine@group/a~b`` of watched groups. Names that look alike are
            written as in Python: ``norm/1`` and ``norm/'1'``. Empty before the first surgery.
        """
        if self._weights is None:
            return {}
        alone = [(task,) for task in self.tasks]
        named: list[tuple[str, tuple[Hashable, ...]]] = []  # kinds and tasks of the numbers
        values: list[Tensor] = []
        matrices: list[tuple[str, Tensor, tuple[Hashable, ...]]] = []
        whole = [] if self._grams is None else ["norm_before", "norm_after"]
        if self._grams is not None:
            named += [("norm/", task) for task in alone]
            values += [self.norm_before[None], self.norm_after[None], self.norms]
            matrices.append(("cosine", self.cosines, self.tasks))
            matrices.append(("conflict_rate", self.conflict_rate, self.task_names))
        named += [("weight/", task) for task in alone]
        values.append(self._weights.mean(0))
        if self._coefficients is not None:
            named += [("norm_after/", task) for task in alone]
            values.append(self.norms_after)
        for kind, kept in self._numbers.items():
            named += [(f"{kind}/", (task,)) for task in self.task_names[: len(kept)]]
            values.append(kept)
        if self._group_grams is not None:
            of_groups = zip(self.group_names, self.group_cosines, strict=True)
            matrices += [(f"cosine@{name}", cosines, self.tasks) for name, cosines in of_groups]
        num_before = len(whole) + len(named)
        upper: list[int] = []  # places of the pairs among the entries of the matrices
        num_entries = num_before
        for kind, matrix, tasks in matrices:
            num = len(tasks)
            pairs = [(i, j) for i in range(num) for j in range(i + 1, num)]
            named += [(f"{kind}/", (tasks[i], tasks[j])) for i, j in pairs]
            upper += [num_entries + i * num + j for i, j in pairs]
            num_entries += num * num
            values.append(matrix.flatten())
        read = torch.cat([value.to(torch.float64) for value in values]).tolist()
        keys = [*whole, *_keys(named)]
        places = [*range(num_before), *upper]
        return {key: read[place] for key, place in zip(keys, places, strict=True)}

    def plot_cosines(self, axes: Axes | None = None) -> Axes:
        """Draws the cosines of the last surgery as a heat map, on ``axes`` or a new figure.

        Raises:
            ImportError: there is no matplotlib.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                f"plot_cosines(): must have matplotlib, got {error}; pip install matplotlib"
            ) from error

        if axes is None:
            _, axes = plt.subplots()
        cosines = self.cosines.tolist()
        image = axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu")
        labels = _keys([("", (task,)) for task in self.tasks])
        axes.set(xticks=range(len(labels)), xticklabels=labels)
        axes.set(yticks=range(len(labels)), yticklabels=labels)
        for i, row in enumerate(cosines):
            for j, cosine in enumerate(row):
                colour = "white" if abs(cosine) > 0.6 else "black"
                axes.text(j, i, f"{cosine:.2f}", ha="center", va="center", color=colour)
        axes.figure.colorbar(image, ax=axes, label="cosine of the tasks' gradients")
        return axes

    def state_dict(self) -> dict[str, object]:
        """The running counts, for an exact resume."""
        met, conflicted = self._counts.read()
        counts = {"nonfinite": self._nonfinite, "met": met, "conflicted": conflicted}
        return {
            "num_surgeries": self.num_surgeries,
            "num_skipped_steps": self.num_skipped_steps,
            **copy.deepcopy(counts),
        }

    def check_state(self, state: Mapping[str, Any], num_tasks: int) -> None:
        """Refuses counts that are none, before anything is changed.

        Raises:
            TypeError, ValueError: with what was found.
        """
        check_integer("state_dict: num_surgeries", state["num_surgeries"], at_least=0)
        num_skipped = state.get("num_skipped_steps", 0)
        check_integer("state_dict: num_skipped_steps", num_skipped, at_least=0)
        for name, dimensions in _DIMENSIONS.items():
            counts = state.get(name)
            if counts is None:
                continue
            is_count = isinstance(counts, Tensor) and counts.layout == torch.strided
            is_count = is_count and not counts.is_meta
            if not (is_count and counts.dtype == torch.int64 and counts.ndim == dimensions):
                raise TypeError(
                    f"state_dict: {name} must be None or whole numbers in {dimensions}-d, found "
                    f"{type(counts).__name__}; take another checkpoint"
                )
            if any(size > num_tasks for size in counts.shape) or len(set(counts.shape)) > 1:
                raise ValueError(
                    f"state_dict: {name} must be of at most the {num_tasks} tasks, found shape "
                    f"{tuple(counts.shape)}; take another checkpoint"
                )

    def load_state_dict(self, state: dict[str, object], device: torch.device) -> None:
        """Takes the running counts back; the last surgery's own numbers are gone."""
        self.__init__()  # type: ignore[misc]
        self.num_surgeries = int(state["num_surgeries"])  # type: ignore[call-overload]
        self.num_skipped_steps = int(state.get("num_skipped_steps", 0))  # type: ignore[call-overload]
        saved = {name: state.get(name) for name in _DIMENSIONS}
        found = {n: v.to(device, copy=True) for n, v in saved.items() if isinstance(v, Tensor)}
        self._nonfinite = found.get("nonfinite")
        self._counts = ConflictCounts(found.get("met"), found.get("conflicted"))


_DIMENSIONS = {"nonfinite": 1, "met": 2, "conflicted": 2}  # of the running counts


def _recorded(
    value: Tensor | None,
    what: str = "the first surgery; call step() first (methods on losses need monitor=True)",
) -> Tensor:
    if value is None:
        raise ValueError(f"diagnostics: nothing to read before {what}")
    return value


def _keys(named: Sequence[tuple[str, tuple[Hashable, ...]]]) -> list[str]:
    """Writes each kind and its tasks as a key; tasks that look alike, as Python writes them."""
    tasks_met = dict.fromkeys(task for _, tasks in named for task in tasks)
    times = Counter(map(str, tasks_met))
    written = {task: str(task) if times[str(task)] == 1 else repr(task) for task in tasks_met}
    keys = [kind + "~".join(written[task] for task in tasks) for kind, tasks in named]
    if len(set(keys)) == len(keys):
        return keys
    return [kind + "~".join(map(repr, tasks)) for kind, tasks in named]


def _cosines(gram: Tensor) -> Tensor:  # [..., T, T] -> [..., T, T]
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return torch.where(gram == 0, 0.0, gram / norms.unsqueeze(-2) / norms.unsqueeze(-1))
