"""A zero gradient that tells who reads `.grad` while the tasks' gradients are kept apart."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.memory import grad_dtype

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_LARGEST = 1 << 16  # elements: what the seal may cost beside the rows
_COMPILERS = ("torch._dynamo", "torch._subclasses", "torch._functorch", "torch._inductor")


class _Zeros(Tensor):
    """A gradient of zeros, which reports every operation on it."""

    report: Callable[[Any], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Its type, shape and place are true of the gradient to come, its values are not.
        if getattr(func, "__name__", "") != "__get__" or func == _DATA:
            for zeros in _found([*args, *kwargs.values()]):
                zeros.report(func)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


class Seal:
    """Lies in the `.grad` of one parameter, the smallest that tasks share, from a block's end until
    surgery; clipping and logging then meet it where they would have found no gradient.

    Autograd adds to it as to any gradient. It is dropped unless something was.

    Args:
        broken: called once, with what to do, when somebody reads it.
        is_wanted: whether it is ever laid.
    """

    def __init__(self, broken: Callable[[str], None], *, is_wanted: bool) -> None:
        self._broken = broken
        self._is_wanted = is_wanted
        self._is_broken = False
        self._parameter: Tensor | None = None
        self._zeros: _Zeros | None = None
        self._kind: object = None
        self._version: int | None = None  # None while it lies nowhere

    def lay(self, buffer: GradientBuffer, handling: str | None) -> None:
        """Puts it where a parameter's gradient is kept in a buffer and nowhere else."""
        if not (self._is_wanted and buffer.slots and handling in ("apart", "held")):
            return
        parameter = self._parameter
        num_tasks = 0 if parameter is None else len(buffer.grads_of(parameter))
        if num_tasks < min(2, len(buffer.slots)):
            reached = buffer.shared() or buffer.touched()
            fitting = [p for p in reached if _may_bear(p)]
            parameter = min(fitting, key=lambda p: p.numel(), default=None)
        if parameter is None or parameter.grad is not None:
            return
        kind = parameter.shape, parameter.dtype, parameter.device, parameter.stride()
        if self._zeros is None or parameter is not self._parameter or kind != self._kind:
            zeros = torch.zeros_like(parameter.detach())
            self._zeros = Tensor._make_subclass(_Zeros, zeros)  # also within a mode, before 2.6
            self._zeros.report = self._report
            self._parameter, self._kind = parameter, kind
        with torch._C.DisableTorchFunctionSubclass():
            self._version = self._zeros._version
            parameter.grad = self._zeros

    def lift(self) -> None:
        """Takes it away; what was added to it stays."""
        if self._version is None or self._parameter is None or self._zeros is None:
            return
        version, self._version = self._version, None
        with torch._C.DisableTorchFunctionSubclass():
            if self._parameter.grad is self._zeros:
                if self._zeros._version == version:
                    self._parameter.grad = None
                else:
                    self._parameter.grad = self._zeros.as_subclass(Tensor)
                    self._zeros = None

    def _report(self, func: Any) -> None:
        if self._version is None or _compiles():
            return
        if func == torch._amp_foreach_non_finite_check_and_unscale_:
            raise ValueError(
                "GradScaler: must find the combined gradient, but the tasks' gradients are kept "
                "apart until surgery; call optimizer.surgery() before unscale_() and step()"
            )
        if not self._is_broken:
            self._is_broken = True
            self._broken(
                ".grad was read (by clipping, perhaps) while the tasks' gradients are kept apart "
                "until surgery, and holds none of them; call optimizer.surgery() first"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"broken": self._broken, "is_wanted": self._is_wanted and not self._is_broken}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _may_bear(parameter: Tensor) -> bool:
    return (
        type(parameter) in (Tensor, torch.nn.Parameter)
        and parameter.numel() <= _LARGEST
        and grad_dtype(parameter) in (None, parameter.dtype)
    )


def _found(values: Any) -> Iterator[_Zeros]:
    for value in values:
        if isinstance(value, _Zeros):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _found(value)


def _compiles() -> bool:
    """Tells whether a compiler looks at the parameters, which is not reading."""
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_COMPILERS):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
