"""A gradient that awaits surgery, which its first use performs."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

_COMPILERS = ("torch._dynamo", "torch._subclasses", "torch._functorch", "torch._inductor")
# What these tell is true of the gradient to come. Everything else asks for its numbers.
_METHODS = (
    "__hash__ __len__ dim element_size get_device is_complex is_conj is_contiguous "
    "is_floating_point is_inference is_neg is_signed ndimension nelement numel size stride"
)
_GETTERS = (
    "_backward_hooks _version device dtype grad grad_fn is_cpu is_cuda is_leaf is_meta is_mkldnn "
    "is_mps is_nested is_quantized is_sparse is_sparse_csr is_xla is_xpu itemsize layout names "
    "nbytes ndim requires_grad retains_grad shape"
)
_OF_FORM = {
    *(getattr(Tensor, name) for name in _METHODS.split()),
    *(getattr(Tensor, name).__get__ for name in _GETTERS.split() if hasattr(Tensor, name)),
    torch.is_complex,
    torch.is_floating_point,
    torch.numel,
    torch._has_compatible_shallow_copy_type,  # asked by conversions of modules
}
_ADDS = {torch.ops.aten.add_.Tensor: True, torch.ops.aten.add.Tensor: False}  # in place, or not
_SETS_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_COMPILER, _CONVERSION, _USER = "compiler", "conversion", "user"


class Awaited(Tensor):
    """Stands for the combined gradient of a parameter: its shape, type and place, without memory.

    The first operation on any of a step's performs surgery. That operation and all later ones are
    those of the combined gradients. Whoever keeps one keeps that gradient.
    """

    seal: Any  # asks for surgery; None once what it stands for is forgotten
    kind: object  # of the parameter
    beneath: Tensor | None  # what was in `.grad`, and what autograd has added since
    is_replaced: bool  # in `.grad`, by autograd
    found: Tensor | None  # the combined gradient

    def fits(self, parameter: Tensor) -> bool:
        """Tells whether it can stand for a gradient of this parameter, and stands for no other."""
        return self.found is None and self.seal is not None and self.kind == kind_of(parameter)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, cls) and first.found is None:
            reader = None if func in _OF_FORM else _reader()
            if reader is _CONVERSION:
                if func == _SETS_DATA:
                    return None
                if first.beneath is not None:
                    first.beneath = func(first.beneath, *args[1:], **kwargs)
                return first
            if reader is not _USER:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
        return func(*_resolved(args, func), **_resolved(kwargs, func))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Called for what C++ does, autograd's additions outside every block above all.
        if func in _ADDS and torch._C._current_graph_task_id() != -1:
            first, second = args
            awaited, grad = (first, second) if isinstance(first, cls) else (second, first)
            if awaited.found is None:
                return awaited.plus(grad, in_place=_ADDS[func])
        return func(*_resolved(args, func), **_resolved(kwargs or {}, func))

    def plus(self, grad: Tensor, *, in_place: bool) -> Tensor:
        """Adds a gradient that autograd made outside every block; surgery can wait."""
        if not in_place:  # it has a graph
            self.is_replaced = True
            return grad.clone() if self.beneath is None else self.beneath + grad
        if self.beneath is None:
            with torch._C.DisableTorchFunctionSubclass():
                self.beneath = torch.empty_strided(
                    self.size(), self.stride(), dtype=grad.dtype, device=grad.device
                ).zero_()
        self.beneath.add_(grad)
        return self

    def resolved(self, func: Any) -> Tensor:
        """Gives the combined gradient, for which surgery is performed if it was not before."""
        if self.found is None and self.seal is not None:
            self.seal.read(self, func)
        if self.found is None:
            raise ValueError(
                ".grad: must be read before its step is over, got a gradient that was taken from "
                "it after a task block and forgotten before surgery; keep p.grad.clone()"
            )
        return self.found


def kind_of(parameter: Tensor) -> object:
    """Gives all that a parameter and its gradient have in common."""
    return parameter.shape, parameter.stride(), parameter.dtype, parameter.device


def _resolved(values: Any, func: Any) -> Any:
    """Puts combined gradients in the place of those that await them, in collections too."""
    if isinstance(values, Awaited):
        return values.resolved(func)
    if type(values) is dict:
        return {name: _resolved(value, func) for name, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(_resolved(value, func) for value in values)
    return values


def _reader() -> str:
    """Tells who looks at a parameter's gradient: a compiler reads no numbers, and the conversion of
    a module has none to convert, since it is the gradients kept apart that count."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(_COMPILERS):
            return _COMPILER
        if name == "torch.nn.modules.module" and frame.f_code.co_name == "_apply":
            return _CONVERSION
        frame = frame.f_back  # type: ignore[assignment]
    return _USER
