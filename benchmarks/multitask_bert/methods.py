"""The methods that a recipe can name: one row each, from which all that treats them differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Method:
    """How the tasks' gradients become one update.

    Args:
        title: as reports and figures call it.
        optimizer: a public class of ``gradsurgery``.
        is_surgery: it is given the run's seed, and its bars are hatched.
        weighs_losses: it is given the run's seed. Any other method is a sum of the losses, which a
            stage may have monitored.
        looks_again: it is shown the losses of a step's examples after the step.
        options: fields of a stage that the class is given under the same names.
    """

    title: str
    optimizer: str
    is_surgery: bool = False
    weighs_losses: bool = False
    looks_again: bool = False
    options: tuple[str, ...] = ()


def _surgery(optimizer: str, title: str | None = None) -> Method:
    """Makes the row of a method that operates on the tasks' gradients."""
    return Method(title or optimizer, optimizer, is_surgery=True, options=("reduction", "scope"))


def _on_losses(optimizer: str, title: str | None = None, *, looks_again: bool = False) -> Method:
    """Makes the row of a method that weighs the losses."""
    return Method(title or optimizer, optimizer, weighs_losses=True, looks_again=looks_again)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "none": Method("none", "LossSum"),  # of a stage that does not train
        "loss-sum": Method("loss sum", "LossSum"),
        "pcgrad": _surgery("PCGrad"),
        "gradvac": _surgery("GradVac"),
        "upgrad": _surgery("UPGrad"),
        "dualproj": _surgery("DualProj"),
        "mgda": _surgery("MGDA"),
        "sdmgrad": _surgery("SDMGrad"),
        "cagrad": _surgery("CAGrad"),
        "nash-mtl": _surgery("NashMTL", "Nash-MTL"),
        "fairgrad": _surgery("FairGrad"),
        "imtl-g": _surgery("IMTLG", "IMTL-G"),
        "config": _surgery("ConFIG"),
        "aligned-mtl": _surgery("AlignedMTL", "Aligned-MTL"),
        "db-mtl": _surgery("DBMTL", "DB-MTL"),
        "uncertainty": _on_losses("UncertaintyWeighting", "uncertainty weighting"),
        "imtl-l": _on_losses("IMTLL", "IMTL-L"),
        "dwa": _on_losses("DWA"),
        "rlw": _on_losses("RLW"),
        "gls": _on_losses("GLS"),
        "stch": _on_losses("STCH"),
        "famo": _on_losses("FAMO", looks_again=True),
        "scale-invariant": _on_losses("ScaleInvariant", "scale-invariant"),
    }
)
