"""Processes that hold the same parameters: how they come to agree on a step."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gradsurgery.distributed.collectives import largest_over, sum_over
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.shards import is_spread

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Agreement(NamedTuple):
    """Facts that hold on any of the processes, and are therefore known to all.

    Attributes:
        tasks_of: the tasks that reached each parameter.
        outside: the parameters that have a gradient outside every task.
        failed: whether a task's gradient is not finite, ``[N]`` booleans.
        failed_tasks: the same, read.
        begun: whether the step has had a task block.
    """

    tasks_of: dict[Tensor, list[int]]
    outside: list[Tensor]
    failed: Tensor
    failed_tasks: list[int]
    begun: bool


class Replicas:
    """The processes of a group.

    Args:
        group: the group.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self._are_alike = False

    @classmethod
    def of(
        cls, group: ProcessGroup | None, parameters: Iterable[Tensor], tasks: Iterable[Hashable]
    ) -> Replicas | None:
        """Makes those of a group, if there is one.

        Raises:
            TypeError, ValueError: surgery cannot use it.
        """
        if group is None:
            return None
        _check_group(group, parameters, tasks)
        return cls(group)

    def check_alike(self, what: object) -> None:
        """Refuses processes that were set up differently, on all of them; asks once.

        Raises:
            ValueError: which process differs from the first, and in what it may.
        """
        from torch.distributed import all_gather_object

        if self._are_alike:
            return
        found: list[Any] = [None] * self.group.size()
        all_gather_object(found, repr(what), group=self.group)
        for process, of_process in enumerate(found):
            if of_process != found[0]:
                raise ValueError(
                    "process_group: every process must declare the same tasks, options, step and "
                    f"parameters, process {process} has {_difference(of_process, found[0])}; "
                    "build the optimizer alike on all of them"
                )
        self._are_alike = True

    def ask_again(self) -> None:
        """Lets the next surgery compare the processes anew."""
        self._are_alike = False

    def agree(
        self,
        parameters: Sequence[Tensor],
        num_tasks: int,
        own: GradientBuffer,
        outside: Collection[Tensor],
        flags: Tensor | None,  # [N] of uint8
        begun: bool,
    ) -> Agreement:
        """Tells the others what there is here: one byte for each parameter and task, read by the
        host, and in the same message one for each task whose gradients were looked at.

        Args:
            parameters: all parameters of the optimizer, in order.
            num_tasks: N, those declared.
            own: what this process keeps of the tasks.
            outside: parameters with a gradient here that belongs to no task.
            flags: whether each task's gradient is not finite here; ``None`` where nobody looks.
            begun: whether the step has had a task block here.
        """
        not_in_tasks = set(outside)
        # 1 for a task says that the step has begun here, 2 that the task reached the parameter.
        table: list[int] = []
        for parameter in parameters:
            here = own.grads_of(parameter)
            table += [2 if task in here else int(begun) for task in range(num_tasks)]
            table.append(int(parameter in not_in_tasks))
        if flags is None:
            flags = torch.zeros(0, dtype=torch.uint8, device=parameters[0].device)
        told = torch.cat([torch.tensor(table, dtype=torch.uint8).to(flags.device), flags])
        read = largest_over(told, self.group).tolist()
        rows = [read[row : row + num_tasks + 1] for row in range(0, len(table), num_tasks + 1)]
        tasks_of = {
            parameter: [task for task in range(num_tasks) if row[task] == 2]
            for parameter, row in zip(parameters, rows, strict=True)
        }
        return Agreement(
            tasks_of,
            [parameter for parameter, row in zip(parameters, rows, strict=True) if row[-1]],
            told[len(table) :].bool(),
            [task for task, has_failed in enumerate(read[len(table) :]) if has_failed],
            read[0] > 0,
        )

    def mean_gram(
        self,
        gram: Tensor,  # [T, T]
        flags: Tensor | None,  # [T]
    ) -> tuple[Tensor, Tensor | None]:  # [T, T], [T]
        """The Gram matrix of the gradients of everybody's examples, where each process has its own,
        and in the same message which tasks' gradients are not finite on any; zero for those."""
        num_tasks = len(gram)
        told = gram if flags is None else torch.cat([gram, flags.to(gram)[None]])
        found = sum_over(told, self.group)
        mean = found[:num_tasks] / self.group.size() ** 2
        if flags is None:
            return mean, None
        failed = found[num_tasks] > 0
        return mean.masked_fill(failed | failed[:, None], 0), failed

    def mean_losses(
        self, losses: Mapping[int, Tensor], num_tasks: int, device: torch.device
    ) -> dict[int, Tensor]:
        """Averages losses by task; one that a process does not have counts as zero."""
        told = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        for task, loss in losses.items():
            told[task] = loss
        return dict(enumerate(sum_over(told, self.group) / self.group.size()))


def _difference(one: str, other: str) -> str:
    """Where two descriptions part, in a few words."""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    around = slice(max(0, place - 20), place + 40)
    return f"{one[around]!r} where process 0 has {other[around]!r}"


def _check_group(group: object, parameters: Iterable[Tensor], tasks: Iterable[Hashable]) -> None:
    """Refuses a process group that surgery cannot use.

    Raises:
        TypeError, ValueError: in one line.
    """
    from torch.distributed import ProcessGroup

    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"process_group: must be a torch.distributed.ProcessGroup, got {type(group).__name__}; "
            "give it torch.distributed.group.WORLD after init_process_group()"
        )
    if not list(tasks):
        raise ValueError(
            "tasks: must be declared where there is a process_group, because processes may meet "
            "them in another order; name them all"
        )
    if any(is_spread(parameter) for parameter in parameters):
        raise ValueError(
            "process_group: must be left out where parameters are sharded; fully_shard() already "
            "averages each task's gradient"
        )
