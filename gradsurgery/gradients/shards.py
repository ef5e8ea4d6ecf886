"""Parameters cut up over processes (DTensor, as FSDP2 makes them): the part here, sums over all."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Spread(NamedTuple):
    """Over which processes a parameter lies, and how many of them hold each part of it."""

    mesh: DeviceMesh
    num_copies: int


_WHOLE = (Tensor, torch.nn.Parameter)


def is_spread(tensor: Tensor) -> bool:
    """Tells whether a tensor lies over several processes.

    Example:
        >>> is_spread(torch.ones(2))
        False
    """
    # DTensor is told by what it has: importing it takes as long as importing half of torch. Asking
    # for what is not there takes long too, and this is asked of every gradient in every step.
    return type(tensor) not in _WHOLE and hasattr(tensor, "device_mesh")


def spread(parameter: Tensor) -> Spread | None:
    """How a parameter lies over processes; ``None`` for one that lies here alone."""
    if not is_spread(parameter):
        return None
    whole: Any = parameter
    sizes = [whole.device_mesh.size(dim) for dim in range(whole.device_mesh.ndim)]
    is_copied = [placement.is_replicate() for placement in whole.placements]
    return Spread(
        whole.device_mesh, prod(n for n, copied in zip(sizes, is_copied, strict=True) if copied)
    )


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies here: all of one that is not spread."""
    return cast("Any", tensor).to_local() if is_spread(tensor) else tensor


def placed_as(parameter: Tensor, grad: Tensor) -> Tensor:
    """A gradient that lies over the processes as its parameter does."""
    there, here = cast("Any", parameter), cast("Any", grad)
    if not is_spread(grad) or here.placements == there.placements:
        return grad
    return cast("Tensor", here.redistribute(there.device_mesh, there.placements))


def whole(parameter: Tensor, part: Tensor) -> Tensor:
    """The gradient of a parameter of which ``part`` lies here."""
    if not is_spread(parameter):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = parameter
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def total(part: Tensor, over: Spread | None) -> Tensor:
    """The sum over all processes of what each computed from its parts of some parameters, where
    what several processes hold counts once; equal to the last bit on all of them."""
    if over is None:
        return part
    from torch.distributed import all_reduce

    summed = part / over.num_copies
    for dim in range(over.mesh.ndim):
        if over.mesh.size(dim) > 1:
            all_reduce(summed, group=over.mesh.get_group(dim))
    return summed


def true_everywhere(flag: Tensor, parameters: list[Tensor]) -> Tensor:  # []
    """Tells whether a boolean is true on every process over which any of the parameters lies."""
    failures = (~flag).to(torch.float64)
    for over in dict.fromkeys(spread(parameter) for parameter in parameters):
        failures = total(failures, over)
    return failures == 0


def mean_everywhere(numbers: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Averages numbers over the processes over which the first parameter that is spread lies;
    gives them back where none is."""
    over = next((spread(parameter) for parameter in parameters if is_spread(parameter)), None)
    if over is None:
        return numbers
    return total(numbers / over.mesh.size(), Spread(over.mesh, num_copies=1))
