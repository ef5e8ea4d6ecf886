"""What TorchJD and LibMTL make of the same gradients, where they are installed."""

from __future__ import annotations

import importlib
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.methods import Peer

_PATIENCE = 5.0  # seconds


class NotInstalledError(ImportError):
    """The peer, or a package that it needs, is not there."""


def described(package: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def torchjd_update(peer: Peer, rows: Tensor) -> Tensor:  # [T, P] -> [P]
    """Gives TorchJD's update: a weighting sees the Gram matrix, an aggregator the rows.

    Raises:
        NotInstalledError: TorchJD, or a solver that the method asks for, is not there.
    """
    options = dict(peer.options)
    if peer.name == "NashMTL":
        options["n_tasks"] = len(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = getattr(importlib.import_module("torchjd.aggregation"), peer.name)(**options)
        except ImportError as error:
            raise NotInstalledError(str(error)) from None
        if not peer.name.endswith("Weighting"):
            update: Tensor = made(rows)
        else:
            update = made(rows @ rows.mT) @ rows
    return update * len(rows) if peer.times_tasks else update


def libmtl_update(peer: Peer, rows: Tensor) -> Tensor:  # [T, P] -> [P]
    """Gives LibMTL's update of linear losses whose gradients are the rows.

    Raises:
        NotInstalledError: LibMTL, or a package that the method asks for, is not there.
    """
    kind: Any = getattr(_libmtl(peer.name), peer.name)
    point = nn.Parameter(torch.zeros_like(rows[0]))

    class Model(kind):  # type: ignore[misc]  # made at run time
        """A model as LibMTL's strategies look at it: one shared tensor."""

        task_num, device, rep_grad = len(rows), rows.device, False

        def get_share_params(self) -> list[nn.Parameter]:
            return [point]

        def zero_grad_share_params(self) -> None:
            point.grad = torch.zeros_like(point)

    default = torch.get_default_dtype()
    torch.set_default_dtype(rows.dtype)  # of the buffers that it makes
    try:
        model = Model()
        model.init_param()
        with warnings.catch_warnings(), _seconds(_PATIENCE):
            warnings.simplefilter("ignore")
            model.backward(rows @ point, **peer.options)
    finally:
        torch.set_default_dtype(default)
    assert point.grad is not None
    return point.grad


def _libmtl(name: str) -> Any:
    """Imports a strategy alone: the whole package imports what torchvision no longer has."""
    spec = find_spec("LibMTL") if "LibMTL" not in sys.modules else None
    if spec is not None:
        sys.modules["LibMTL"] = module_from_spec(spec)
    try:
        return importlib.import_module(f"LibMTL.weighting.{name}")
    except ImportError as error:
        raise NotInstalledError(str(error)) from None


@contextmanager
def _seconds(limit: float) -> Iterator[None]:
    """Raises TimeoutError in a call that takes longer: one of LibMTL's loops need not end."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer in {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
