"""The methods that a recipe can name: one row each, from which all that treats them differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

# Of the options that every method of surgery has, those that a stage may set: the others are
# fields of the stage, or follow from the run.
_OF_SURGERY = ("every", "start_step", "granularity")


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

    def make(self, *args: Any, **options: Any) -> Any:
        """Calls the class."""
        return self._class(*args, **options)

    def own_options(self) -> dict[str, Parameter]:
        """Gives the options that a stage's ``method_options`` may name, with their defaults.

        Example:
            >>> {name: each.default for name, each in METHODS["cagrad"].own_options().items()}
            {'c': 0.4, 'rescale': 0, 'every': 1, 'start_step': 0, 'granularity': 'model'}
        """
        own = {
            name: each
            for name, each in signature(self._class).parameters.items()
            if each.kind is Parameter.KEYWORD_ONLY and name not in (*self.options, "monitor")
        }
        if self.is_surgery:
            of_all = signature(import_module("gradsurgery").MultiTaskOptimizer).parameters
            own |= {name: of_all[name] for name in _OF_SURGERY}
        return own

    @property
    def _class(self) -> Any:
        # Imported where it is used: reports read this table, and never import torch.
        return getattr(import_module("gradsurgery"), self.optimizer)


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
        "gradnorm": _surgery("GradNorm"),
        "rgw": _surgery("RGW"),
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
