"""Gradients that stand in `.grad` while the tasks' are kept apart: laid, lifted, found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.memory import grad_dtype, strides_of
from gradsurgery.gradients.shards import is_spread
from gradsurgery.optimizer.awaited import Awaited, kind_of

_UNSCALES = torch._amp_foreach_non_finite_check_and_unscale_
_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl

Pair = tuple[Tensor, Any]  # a parameter and its Awaited, or None where it can have none


class Seal:
    """Lays gradients that await surgery into `.grad`, from a block's end until surgery.

    What autograd adds to them lies beneath, as does what `.grad` held before. Where `.grad` is set
    to something else meanwhile, such as `None`, the parameter loses what the tasks gave it.

    A process that may not begin a surgery by itself lays one only, for the smallest parameter that
    tasks share. It counts as zero, and reports who reads it.

    Args:
        operate: performs surgery.
        report: called once, with what to do, when somebody reads too early.
        speaks: whether to report.
        is_alone: whether this process may begin a surgery by itself.
    """

    def __init__(
        self,
        operate: Callable[[], None],
        report: Callable[[str], None],
        *,
        speaks: bool,
        is_alone: bool,
    ) -> None:
        self._operate = operate
        self._report = report
        self._speaks = speaks
        self._is_alone = is_alone
        self._is_paused = False
        self._buffer: GradientBuffer | None = None
        self._pairs: list[Pair] = []  # in the order of the buffer; cached from step to step
        self._num_used = 0  # pairs, in this step
        self._laid: list[Pair] = []  # now
        self._read: list[Pair] = []  # that stand for what surgery has made
        self._is_reading = False
        self._is_early = False  # whether surgery was performed by reading, and not again since

    def pause(self, is_paused: bool) -> None:
        """Lays nothing, between the blocks of one call that ends in surgery."""
        self._is_paused = is_paused

    def enter(self, task: Hashable) -> None:
        """Takes them away for a block."""
        self.lift()
        if self._is_early:
            self._is_early = False
            self._say(
                f".grad was read (by clipping, perhaps) before the block of task {task!r}, so that "
                "surgery took place without it; read .grad after the step's last block, or call "
                "optimizer.surgery() where this is meant"
            )

    def lay(self, buffer: GradientBuffer, handling: str | None) -> None:
        """Lays one where a parameter's gradients are kept in a buffer."""
        if self._is_paused or not buffer.slots or handling not in ("apart", "held"):
            return
        touched = buffer.touched()
        if self._is_alone:
            self._prepare(touched, buffer)
        if not self._is_alone:  # as _prepare() may find out
            self._num_used = 0
            reached = [p for p in buffer.shared() or touched if not is_spread(p)]
            if not (self._speaks and reached):
                return
            self._prepare([min(reached, key=Tensor.numel)], buffer)
        self._buffer = buffer
        for place, pair in enumerate(self._pairs[: self._num_used]):
            parameter, awaited = pair
            if awaited is None:
                continue
            grad = parameter.grad
            if grad is not None and (
                type(grad) is not Tensor or grad.is_sparse or grad.requires_grad
            ):
                continue
            try:
                parameter.grad = awaited
            except RuntimeError:  # the parameter was converted since
                awaited = self._made(parameter, buffer)
                pair = self._pairs[place] = (parameter, awaited)
                parameter.grad = awaited
            if grad is not None:
                awaited.beneath = grad
            self._laid.append(pair)

    def lift(self) -> None:
        """Takes them away; what lies beneath, and what was put in their place, stays."""
        if self._read:
            self._release()
        if not self._laid:
            return
        laid, self._laid = self._laid, []
        lost = []
        for parameter, awaited in laid:
            beneath = awaited.beneath
            if parameter.grad is awaited:
                parameter.grad = beneath
            elif awaited.is_replaced:
                awaited.is_replaced = False
            else:
                awaited.seal = None
                lost.append(parameter)
            if beneath is not None:
                awaited.beneath = None
        if lost and self._buffer is not None:
            self._buffer.drop(lost)
            used = self._pairs[: self._num_used]
            left = [pair for pair in used if pair[1] is None or pair[1].seal is not None]
            self._pairs[: self._num_used] = left
            self._num_used = len(left)

    def settle(self) -> None:
        """Has those that somebody keeps stand for what surgery has put into `.grad`."""
        self._is_early = self._is_reading
        for pair, is_kept in self._used():
            if is_kept or self._is_reading:
                pair[1].found = pair[0].grad
                self._read.append(pair)

    def forget(self) -> None:
        """Takes them away for good; those that somebody keeps stand for nothing."""
        self.lift()
        self._is_early = False
        for (_, awaited), is_kept in self._used():
            if is_kept and awaited.found is None:
                awaited.seal = None

    def read(self, awaited: Awaited, func: Any) -> None:
        """Performs surgery for somebody who uses one of them."""
        if self._is_alone:
            self._is_reading = True
            try:
                with torch.inference_mode(False):
                    self._operate()
            finally:
                self._is_reading = False
            return
        if func == _UNSCALES:
            raise ValueError(
                "GradScaler: must find the combined gradient, but the tasks' gradients are kept "
                "apart until surgery; call optimizer.surgery() before unscale_() and step()"
            )
        self._say(
            ".grad was read (by clipping, perhaps) while the tasks' gradients are kept apart "
            "until surgery, and holds none of them; call optimizer.surgery() first"
        )
        if awaited.beneath is None:
            with torch._C.DisableTorchFunctionSubclass():
                awaited.beneath = torch.zeros(
                    awaited.size(), dtype=awaited.dtype, device=awaited.device
                )
        awaited.found = awaited.beneath

    def _say(self, what: str) -> None:
        if self._speaks:
            self._speaks = False
            self._report(what)

    def _prepare(self, touched: Sequence[Tensor], buffer: GradientBuffer) -> None:
        """Sees to it that there is one for each parameter, fit for this step."""
        pairs = self._pairs
        for place in range(self._num_used, len(touched)):
            parameter = touched[place]
            if place < len(pairs):
                known, awaited = pairs[place]
                if known is parameter and awaited is not None and awaited.fits(parameter):
                    continue
            pairs[place : place + 1] = [(parameter, self._made(parameter, buffer))]
        self._num_used = len(touched)

    def _made(self, parameter: Tensor, buffer: GradientBuffer) -> Awaited | None:
        if is_spread(parameter):
            self._is_alone = False  # surgery takes the other processes
        if type(parameter).__torch_dispatch__ is not _NO_DISPATCH:
            return None
        dtype = grad_dtype(parameter)
        is_usual = dtype == parameter.dtype
        if dtype is None:
            numbers = next(iter(buffer.grads_of(parameter).values()))
            dtype = buffer.as_grad(parameter, numbers).dtype
        awaited: Awaited = Tensor._make_wrapper_subclass(
            Awaited,
            parameter.shape,
            strides=strides_of(parameter),
            dtype=dtype,
            device=parameter.device,
        )
        awaited.seal, awaited.kind = self, kind_of(parameter) if is_usual else None
        awaited.beneath, awaited.found, awaited.is_replaced = None, None, False
        return awaited

    def _used(self) -> Iterator[tuple[Pair, bool]]:
        """Ends the step for its pairs, and tells which of them somebody keeps."""
        if not self._num_used:
            return
        used, self._num_used = self._pairs[: self._num_used], 0
        for pair, count in zip(used, _counts(used), strict=True):
            if pair[1] is not None:
                yield pair, count > _UNKEPT

    def _release(self) -> None:
        """Lets go of combined gradients, but for those that somebody keeps."""
        read, self._read = self._read, []
        if self._is_early:
            self._is_early = any(p.grad is awaited.found for p, awaited in read)
        for (_, awaited), count in zip(read, _counts(read), strict=True):
            if count <= _UNKEPT:
                awaited.found = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "operate": self._operate,
            "report": self._report,
            "speaks": self._speaks,
            "is_alone": self._is_alone,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _counts(pairs: Sequence[tuple[Any, Any]]) -> list[int]:
    """Counts the references to the second of each pair."""
    return [sys.getrefcount(awaited) for _, awaited in pairs]


_UNKEPT = _counts([(0, object())])[0]  # where nothing but its pair has it
