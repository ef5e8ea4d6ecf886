"""The processes of a run: one alone, or those that torchrun started to train one model."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.multitask_bert.records.record import RecordError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

# What a process says of itself when all meet; the largest is what all of them hear.
_FINE, _ASKED, _FAILED = range(3)


class ProcessError(RecordError):
    """A refusal of one process or more; all of them raise it."""


class CrashError(RuntimeError):
    """A crash of one process or more; all of them raise it."""


class LostError(RuntimeError):
    """A process that does not answer."""


@dataclass(frozen=True)
class Processes:
    """Processes that meet in the same order at the same places.

    A process that fails anywhere inside :meth:`together` says so in the next meeting, so that the
    others, which then wait for it in that meeting, fail as well. Between two meetings there may be
    other collectives, such as the optimizer's; what can fail in one process alone must not stand
    among them without a meeting before they begin.

    Args:
        rank: of this process, from 0.
        number: of all of them.
    """

    rank: int = 0
    number: int = 1

    @property
    def is_first(self) -> bool:
        """Tells whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def group(self) -> ProcessGroup | None:
        """All of them, as torch knows them; None for one alone."""
        return None if self.number == 1 else dist.group.WORLD

    @contextmanager
    def together(self) -> Iterator[None]:
        """Lets all processes fail where one does; the block begins and ends in all of them.

        Raises:
            ProcessError: instead of a ``ValueError`` or ``OSError`` of the first that failed.
            CrashError: instead of any other exception of it, which is printed where it was raised.
            LostError: a process has ended or cannot be reached.
        """
        if self.number == 1:
            yield
            return
        try:
            yield
        except (ProcessError, CrashError, LostError):
            raise  # they know of it
        except Exception as error:
            self._meet(_FAILED, error)
        else:
            self._meet(_FINE)

    def meet(self) -> None:
        """Waits for the others.

        Raises:
            ProcessError, CrashError, LostError: as :meth:`together`.
        """
        if self.number > 1:
            self._meet(_FINE)

    def any(self, flag: bool) -> bool:
        """Tells whether a flag is set in any of them; raises as :meth:`meet`."""
        return flag if self.number == 1 else self._meet(_ASKED if flag else _FINE) == _ASKED

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank; raises as :meth:`meet`."""
        if self.number == 1:
            return [value]
        self._meet(_FINE)
        found: list[T] = [value] * self.number
        with _reaching():
            dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Gives all of them what the first process makes; raises as :meth:`together`."""
        if self.number == 1:
            return make()
        made: list[T | None] = [None]
        with self.together():
            if self.is_first:
                made[0] = make()
        with _reaching():
            dist.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[return-value]

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Gives tensors the values that they have in the first process; raises as :meth:`meet`."""
        if self.number == 1:
            return
        self._meet(_FINE)
        with _reaching():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def _meet(self, status: int, error: Exception | None = None) -> int:
        highest = torch.tensor(status)
        with _reaching():
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            if int(highest) < _FAILED:
                return int(highest)
            told: list[tuple[bool, str] | None] = [None] * self.number
            dist.all_gather_object(told, None if error is None else _description(error))
        if error is not None and not isinstance(error, (ValueError, OSError)):
            traceback.print_exception(error)
        rank, failure = next((i, each) for i, each in enumerate(told) if each is not None)
        was_refused, text = failure
        kind = ProcessError if was_refused else CrashError
        raise kind(text if rank == 0 else f"process {rank}: {text}") from error


ALONE = Processes()


def here() -> Processes:
    """The processes that this one has joined.

    >>> here()
    Processes(rank=0, number=1)
    """
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the processes that torchrun started, or uses the process group that there is.

    Tensors on the CPU travel over gloo and those of a GPU over NCCL, so that a meeting never waits
    for a GPU.
    """
    if dist.is_initialized():
        yield here()
        return
    has_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    try:
        yield here()
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process among those of its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def _reaching() -> Iterator[None]:
    """Says in one line that a process is gone, which a backend tells in its own way."""
    try:
        yield
    except RuntimeError as error:
        raise LostError(
            "processes: all must answer, found one that has ended or cannot be reached "
            f"({str(error)[:200]}); go on with the same command and --resume"
        ) from error


def _description(error: Exception) -> tuple[bool, str]:
    was_refused = isinstance(error, (ValueError, OSError))
    text = str(error) or type(error).__name__
    return was_refused, text if was_refused else f"{type(error).__name__}: {text}"
