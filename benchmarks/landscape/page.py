"""The page of all methods: what their docstrings say, their pictures, and where they ended here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module

from benchmarks.landscape.paths import LR, NUM_STEPS, Trail, titles
from benchmarks.multitask_bert.methods import METHODS

NEAR = 0.1  # of a crossing
# When a method does nothing, and what it is bad at.
_BEWARE = {
    "LossSum": "It goes where the longest gradients pull.",
    "PCGrad": "It does nothing where no two gradients conflict; of two equally long ones it "
    "changes the length of the update alone.",
    "GradVac": "Once its targets are above zero it turns gradients that do not conflict, too.",
    "UPGrad": "It does nothing but take the mean where no two gradients conflict.",
    "DualProj": "It does nothing but take the mean where no gradient conflicts with that.",
    "MGDA": "It slows down as soon as one task is done, and stops where one gradient is zero.",
    "SDMGrad": "As lamb grows it becomes the mean, conflicts and all.",
    "CAGrad": "It may conflict with a task while c is below 1; at 0 it is the mean.",
    "NashMTL": "It does not see how long gradients are, so that steps do not shrink as training "
    "ends, and learning rates must be found anew.",
    "FairGrad": "Above alpha = 1 the longer the gradients, the shorter the update.",
    "IMTLG": "Of gradients that are nearly opposite or nearly dependent weights are large.",
    "ConFIG": "Of gradients that nearly cancel the update nearly vanishes.",
    "AlignedMTL": "A task whose gradient is a thousand times shorter than another's drops out.",
    "DBMTL": "It makes the gradient of a task that is all but done as long as the longest, noise "
    "and all.",
    "GradNorm": "It resolves no conflict, and its weights take many steps to move.",
    "RGW": "It is there to be compared with: what beats the loss sum should beat this.",
    "CRMOGM": "It promises nothing of a single step that the method inside promises.",
    "UncertaintyWeighting": "It resolves no conflict, and its weights take many steps to move.",
    "IMTLL": "It resolves no conflict; a loss near zero gets a weight without bound.",
    "DWA": "It resolves no conflict, and does nothing while all losses fall at one rate.",
    "RLW": "It is there to be compared with: what beats the loss sum should beat this.",
    "GLS": "It resolves no conflict; a loss near zero gets a weight without bound.",
    "STCH": "It resolves no conflict, and all but the largest loss may stand still.",
    "FAMO": "It resolves no conflict, and costs a second look at the losses.",
    "ScaleInvariant": "It resolves no conflict; a loss near zero gets a weight without bound.",
}

_TOP = """\
% Written by `python -m benchmarks.landscape --out docs/static --page docs/methods.md`.

# Methods

Every method with its equation, its source, and two pictures of what it does. Which of them to
take is [another page](which-method.md#all-methods); their arguments are in the
[API](api.md#optimizers).

T tasks have gradients $g_i$, losses $\\ell_i$ and the Gram matrix $G$ with
$G_{{ij}} = g_i \\cdot g_j$; $u$ is the update. A *mean-like* update is the mean of the gradients
where nothing conflicts, a *sum-like* one their sum.

## The landscape

![Trails of every method over two losses](static/landscapes.png)

Two losses (blue, orange), each least on a curved line and steep beside it, the second with
gradients six times as long. At the stars both are least. Every method starts at the squares and
takes {steps} steps of Adam (lr {lr}), whose steps do not depend on how long an update is; a dot is
where it ended. The idea is that of figure 1 of Tianhe Yu et al., "Gradient Surgery for Multi-Task
Learning", 2020; the functions are our own,
$\\ell_i = a_i \\bigl(0.05 + \\tfrac{{1}}{{2}} \\log(1 + (y \\mp 0.6 \\sin x)^2 / 0.05^2)\\bigr)$
with $a = (1, 6)$.

It shows what a method does, not which is best: with other starts, steps or heights others end
elsewhere, and what holds in two dimensions need not in millions, where
[the benchmark](benchmark.md) measures. Both losses at the end, from each start, and how many ends
are within 0.1 of a star:

{table}
## Arrows

![What every method makes of two and of three gradients](static/arrows.png)

Two gradients, then three (thin), and the first update made of them (thick) at losses of 1. Updates
in the grey cone lower every loss to first order. Lengths are true: some are means, some sums, some
of their own.
"""


def page(trails: Mapping[str, Sequence[Trail]], table: str) -> str:
    """Writes the page of the methods of the table."""
    parts = [_TOP.format(table=table, steps=NUM_STEPS, lr=LR)]
    parts += [section(name, trails[name]) for name in titles()]
    return "\n".join(parts)


def section(name: str, trails: Sequence[Trail]) -> str:
    """Writes a method's part: what its docstring says above the arguments, and its pictures."""
    method = METHODS[name]
    described = inspect.getdoc(getattr(import_module("gradsurgery"), method.optimizer)) or ""
    about = described.partition("\nArgs:")[0]
    about = re.sub(r"``([^`]+)``", r"`\1`", about)
    about = re.sub(r"\.\. math::[ \n]*((?:.+\n?)+)", _equation, about)
    about = re.sub(r":math:`([^`]+)`", r"$\1$", about)
    about = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", about)
    (source,) = re.findall(r"^Sources?: .*?(?=\n\n|\Z)", described, re.S | re.M) or [""]
    near = sum(trail.distance < NEAR for trail in trails)
    beware = _BEWARE.get(method.optimizer, "")
    ended = f"On the landscape it ended at a crossing from {near} of {len(trails)} starts."
    return (
        "\n\n".join(
            part
            for part in (
                f"## {method.title[0].upper()}{method.title[1:]}",
                f"`{method.optimizer}`. {about.strip()}",
                f"![{method.title} on the landscape, of two and of three gradients]"
                f"(static/methods/{name}.png)",
                f"{beware} {ended}".strip(),
                source,
            )
            if part
        )
        + "\n"
    )


def _equation(found: re.Match[str]) -> str:
    return "$$\n" + "\n".join(line.strip() for line in found[1].strip().splitlines()) + "\n$$\n"
