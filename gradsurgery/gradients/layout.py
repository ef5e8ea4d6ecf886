"""Which parameters have a place in the rows, and in which rows, from one step to the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradsurgery.gradients.given_rows import GivenRows
from gradsurgery.gradients.host import HostRows, Road, is_away
from gradsurgery.gradients.memory import grad_dtype
from gradsurgery.gradients.rows import Rows
from gradsurgery.gradients.shards import Spread, local, spread


@dataclass
class Layout:
    """Gives every parameter that two tasks ever reached in one step a place in the rows.

    There are rows for each device and type, and for each way in which parameters are sharded.

    Args:
        dtype: type of the rows; ``None`` keeps that of the gradients.
        on_host: whether rows lie in the host's memory, wherever the parameters are.

    Attributes:
        row_sets: all rows there are.
        home: the rows in which a parameter has its place.
        copied: parameters whose gradients somebody keeps, and which are handed out as copies.
        views: for each slot, the places of the parameters in its row.
        given: rows that somebody else made, of parameters that have no others in this step.
    """

    dtype: torch.dtype | None = None
    on_host: bool = False
    row_sets: list[Rows] = field(default_factory=list)
    home: dict[Tensor, Rows] = field(default_factory=dict)
    copied: set[Tensor] = field(default_factory=set)
    views: list[dict[Tensor, Tensor]] = field(default_factory=list)
    given: dict[Tensor, GivenRows] = field(default_factory=dict)
    _newly_shared: dict[Tensor, None] = field(default_factory=dict)  # a set that keeps its order
    _dtypes: dict[Tensor, torch.dtype] = field(default_factory=dict)  # of gradients, any allowed
    _most_tasks: int = 0  # in any step so far
    _roads: dict[torch.device, Road] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of the flat rows."""
        return sum(
            rows.matrix.untyped_storage().nbytes()
            for rows in self.row_sets
            if rows.matrix is not None
        )

    def in_use(self) -> Sequence[Rows]:
        """Lists the rows that may hold gradients of this step."""
        if not self.given:
            return self.row_sets
        ours = [rows for rows in self.row_sets if not rows.segments.keys() <= self.given.keys()]
        return [*ours, *self.given.values()]

    def place(self, parameter: Tensor) -> Rows:
        """Gives the rows in which a parameter's gradients lie in this step."""
        return self.given.get(parameter) or self.home[parameter]

    def adopt(self, stacks: Mapping[Tensor, Tensor], num_tasks: int) -> None:
        """Gives parameters rows that somebody else made, ``[T, *shape]``, for this step."""
        self.reserve(num_tasks)
        self.given.update((p, GivenRows(p, stack)) for p, stack in stacks.items())

    def has_given(self, grads: Sequence[tuple[Tensor, Tensor]]) -> bool:
        """Tells whether one of some gradients is of a parameter with such rows."""
        return any(parameter in self.given for parameter, _ in grads)

    def give_back(self) -> Mapping[Tensor, GivenRows]:
        """Returns such rows, and has none from now on."""
        self.check_given()
        given, self.given = self.given, {}
        return given

    def check_given(self) -> None:
        """Refuses such rows where they were written to.

        Raises:
            ValueError: with their shape.
        """
        for rows in self.given.values():
            rows.check_unchanged()

    def holds(self, grad: Tensor) -> bool:
        """Tells whether a gradient lies in the rows, where the next capture would overwrite it."""
        part = local(grad)
        place = part.data_ptr()
        for rows in self.row_sets:
            if rows.matrix is not None and rows.device == part.device:
                begin = rows.matrix.data_ptr()
                if begin <= place < begin + rows.matrix.untyped_storage().nbytes():
                    return True
        return False

    def prepare(self) -> None:
        """Lays the rows out anew where they are too few, parameters are no longer what they were,
        or somebody keeps a gradient that lies there."""
        held = [parameter for rows in self.row_sets for parameter in rows.held()]
        self.copied.update(held)
        if held or self._newly_shared or any(rows.is_outdated() for rows in self.row_sets):
            self._lay_out()

    def reserve(self, num_rows: int) -> None:
        """Makes room for the gradients of so many tasks."""
        if num_rows <= len(self.views):
            return
        for rows in self.row_sets:
            rows.reserve(num_rows)
        self.views = [
            {p: view for rows in self.row_sets for p, view in rows.views[slot].items()}
            for slot in range(num_rows)
        ]

    def check_dtypes(self, grads: Sequence[tuple[Tensor, Tensor]], *, are_first: bool) -> None:
        """Sees to it that no gradient loses digits in rows of another type.

        Args:
            grads: pairs of a parameter and its gradient.
            are_first: whether the rows hold nothing yet in this step.

        Raises:
            ValueError: the type has changed since an earlier backward of the step.
        """
        if self.dtype is not None or not self.row_sets:
            return
        if {grad.dtype for _, grad in grads} == {rows.dtype for rows in self.row_sets}:
            return
        narrow: dict[Tensor, torch.dtype] = {}
        for parameter, grad in grads:
            home = self.home.get(parameter)
            if home is not None and grad.dtype != home.dtype:
                dtype = grad.dtype.to_real()
                if torch.promote_types(dtype, home.dtype) != home.dtype:
                    narrow[parameter] = dtype
        if not narrow:
            return
        if not are_first:
            parameter, dtype = next(iter(narrow.items()))
            raise ValueError(
                "gradients: must keep their type from a step's first backward to step(), got "
                f"{dtype} after {self.home[parameter].dtype}; convert the model after zero_grad()"
            )
        self._dtypes.update(narrow)
        self._lay_out()

    def learn(
        self,
        shared: Sequence[Tensor],
        loose: Mapping[Tensor, Mapping[int, Tensor]],
        num_tasks: int,
    ) -> None:
        """Takes note, at the end of a step, of what the next one will need.

        Args:
            shared: the parameters that several tasks reached.
            loose: gradients outside the rows, by parameter.
            num_tasks: tasks in this step.
        """
        ours = [parameter for parameter in shared if parameter not in self.given]
        self.given.clear()
        new = [parameter for parameter in ours if parameter not in self.home]
        self._newly_shared.update(dict.fromkeys(new))
        for parameter in new:
            if grad_dtype(parameter) is None and parameter in loose:
                self._dtypes[parameter] = next(iter(loose[parameter].values())).dtype
        if ours or not shared:
            self._most_tasks = max(self._most_tasks, num_tasks)

    def saved(self) -> tuple[list[Tensor], int]:
        """Gives what decides where the next step's gradients lie, and so how sums are rounded: the
        parameters with a place in the rows, in order, and the number of rows."""
        return [*self.home, *self._newly_shared], self._most_tasks

    @classmethod
    def of_saved(
        cls,
        dtype: torch.dtype | None,
        on_host: bool,
        parameters: Iterable[Tensor],
        num_rows: int,
    ) -> Layout:
        """Makes the layout that :meth:`saved` told of."""
        newly_shared = dict.fromkeys(parameters)
        return cls(dtype, on_host, _newly_shared=newly_shared, _most_tasks=num_rows)

    def road(self, device: torch.device, *, is_known: bool = True) -> Road | None:
        """The way from a device to the host, for gradients that are kept there.

        Args:
            device: the device.
            is_known: whether the gradient is of a parameter with a place in the rows. Others go to
                the host too in the first step, in which no parameter has one.
        """
        if not (self.on_host and is_away(device)) or (self.home and not is_known):
            return None
        return self._roads.setdefault(device, self._roads.get(device) or Road(device))

    def here(self, parameter: Tensor, grad: Tensor) -> Tensor:
        """A gradient, or a part of one, on the device of its parameter."""
        if not self.on_host:
            return grad
        road = self.road(local(parameter).device)
        if road is None or grad.device == road.device:
            return grad
        road.join()
        return road.fetch(grad)

    def stacked(self, parameter: Tensor, pieces: Iterable[Tensor]) -> Tensor:  # [T, ...]
        """Flat pieces of a parameter's gradients as rows, on its device."""
        return torch.stack([self.here(parameter, piece) for piece in pieces])

    def _lay_out(self) -> None:
        kinds: dict[tuple[torch.device, torch.dtype, Spread | None], list[Tensor]] = {}
        for parameter in [*self.home, *self._newly_shared]:
            dtype = grad_dtype(parameter) or self._dtypes.get(parameter, parameter.dtype)
            kind = (local(parameter).device, self.dtype or dtype.to_real(), spread(parameter))
            kinds.setdefault(kind, []).append(parameter)
        self.row_sets = []
        for (device, dtype, over), parameters in kinds.items():
            road = self.road(device)
            self.row_sets.append(
                Rows(device, dtype, over, parameters)
                if road is None
                else HostRows(road, dtype, over, parameters)
            )
        self.home = {p: rows for rows in self.row_sets for p in rows.segments}
        self._newly_shared, self.views = {}, []
        self.reserve(self._most_tasks)
