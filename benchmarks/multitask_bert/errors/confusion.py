"""Which class was taken for which, and the metrics that are read off it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Confusion:
    """The number of examples by label and prediction.

    Example:
        >>> Confusion.of([0, 1, 1, 2], [0, 0, 1, 2], 3).accuracy
        0.75
    """

    counts: NDArray[np.int64]  # [C, C], [label, prediction]

    @classmethod
    def of(cls, predictions: Values, labels: Values, num_classes: int) -> Confusion:
        """Count whole numbers from 0 to ``num_classes - 1``."""
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(counts, (np.asarray(labels, dtype=int), np.asarray(predictions, dtype=int)), 1)
        return cls(counts)

    @property
    def num_labels(self) -> NDArray[np.int64]:  # [C]
        return np.asarray(self.counts.sum(axis=1))

    @property
    def num_predictions(self) -> NDArray[np.int64]:  # [C]
        return np.asarray(self.counts.sum(axis=0))

    @property
    def hits(self) -> NDArray[np.int64]:  # [C]
        return np.asarray(self.counts.diagonal())

    @property
    def f1(self) -> NDArray[np.float64]:  # [C]
        """$2 h_c / (l_c + p_c)$ of hits, labels and predictions; NaN for a class in neither."""
        both = self.num_labels + self.num_predictions
        empty = np.full(both.size, np.nan)
        return np.asarray(np.divide(2 * self.hits, both, out=empty, where=both > 0))

    @property
    def accuracy(self) -> float:
        return self._share_within(0)

    @property
    def off_by_one(self) -> float:
        """The share of predictions that are at most one class away from their label."""
        return self._share_within(1)

    @property
    def macro_f1(self) -> float:
        """The mean F1 over the classes that occur."""
        return float(np.nanmean(self.f1))

    def best_constant(self, metric: Callable[[Confusion], float]) -> float:
        """Give the best that one class for every example could have scored.

        Example:
            >>> confusion = Confusion.of([0, 1, 1, 2], [0, 0, 1, 2], 3)
            >>> confusion.best_constant(lambda c: c.off_by_one)
            1.0
        """
        classes = range(len(self.counts))
        constants = (np.outer(self.num_labels, np.eye(len(self.counts))[c]) for c in classes)
        return max(metric(Confusion(counts.astype(np.int64))) for counts in constants)

    def _share_within(self, distance: int) -> float:
        label, prediction = np.indices(self.counts.shape)
        near = self.counts[np.abs(label - prediction) <= distance]
        return float(near.sum() / self.counts.sum())
