"""The joint-linear model of Smet and Walker with every method of the table, one thing changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.recipe import Recipe
from benchmarks.multitask_bert.recipes.smet_walker import general_linear_loss_sum

PREFIX = "method/"


def recipes() -> Iterator[Recipe]:
    """A recipe for every method that trains, with the library's own reduction and scope."""
    general = general_linear_loss_sum()
    for name, method in METHODS.items():
        if name != "none":
            yield replace(
                general.in_every_stage(method=name, reduction="sum", scope="shared"),
                id=f"{PREFIX}{name}",
                description=f"linear heads on joint pairs, {method.title}",
            )
