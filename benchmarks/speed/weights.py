"""Weights from a Gram matrix beside those of TorchJD, in turns: what each costs and launches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed.launches import count_launches, count_waits
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.methods import FAMILY, Member, Weighting

NUM_TASKS = (3, 8, 40)
_NUM_MATRICES = 8


def peer(member: Member, example: Tensor) -> Weighting | str:  # [T, T]
    """Finds TorchJD's way to a method, or says why there is none where the example lies."""
    if member.peer is None:
        return "none"
    try:
        made = member.peer(len(example))
        made(example)
    except (ImportError, NameError):  # the second where it was imported without
        return "not installed"
    except (RuntimeError, TypeError, ValueError) as error:
        return f"failed: {' '.join(str(error).split())[:60]}"
    return made


def compare(
    num_tasks: Sequence[int] = NUM_TASKS, *, rounds: int, seed: int = 0, device: str = "cpu"
) -> list[str]:
    """Times every method, and counts what it launches; the lines of a table.

    Args:
        num_tasks: sizes T of the matrices, which are those of random gradients.
        rounds: how often every action is timed.
        seed: of the gradients.
        device: where the matrices are; on CUDA, how often a method waits for it is counted too.
    """
    is_cuda = torch.device(device).type == "cuda"
    lines = []
    for member in FAMILY.values():
        for size in num_tasks:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(
                _NUM_MATRICES, size, 3 * size + 5, generator=generator, dtype=torch.float64
            )
            grams = rows @ rows.mT
            shown = torch.linalg.cholesky(grams) if member.of_rows else grams
            grams, shown = grams.to(device), shown.to(device)
            theirs = peer(member, shown[0])
            actions = {"ours": _over(list(grams), member.weights)}
            if not isinstance(theirs, str):
                actions["theirs"] = _over(list(shown), theirs)
            times = interleaved(actions, rounds=rounds, device=device)
            line = [member.title, str(size), f"{times.of('ours').scaled(1e3 / len(grams)):.3f}"]
            if isinstance(theirs, str):
                line += [theirs, ""]
            else:
                line.append(f"{times.of('theirs').scaled(1e3 / len(grams)):.3f}")
                line.append(f"{times.ratio('ours', to='theirs'):.2f}")
            once = partial(member.weights, grams[0])
            line.append(str(count_launches(once, device)))
            if is_cuda:
                line.append(str(count_waits(once)))
            lines.append(line)
    counted = ["kernels here", "waits here"] if is_cuda else ["operators here"]
    return table(["method", "T", "here, ms", "TorchJD, ms", "here / TorchJD", *counted], lines)


def _over(grams: Sequence[Tensor], weights_of: Weighting) -> Action:
    def run() -> None:
        for gram in grams:
            weights_of(gram)

    return Action(run)
