"""README and CONTRIBUTING against what is there: their code is run, their commands looked up."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradsurgery
from benchmarks.multitask_bert.__main__ import main
from benchmarks.multitask_bert.recipes.catalog import all_recipes
from gradsurgery import PCGrad
from tests.oracle import every_update
from tests.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def code_of(page: str) -> Iterator[str]:
    """Shell lines without their comments, and code within sentences."""
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            yield line.partition("#")[0].strip()
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


# The training loop.


class Model(nn.Module):
    """Three tasks that pull a shared vector apart, each with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))
        self.heads = nn.ParameterDict({name: torch.ones(3) for name in ("a", "b", "c")})

    def loss(self, name: str, batch: Tensor) -> Tensor:
        return (self.shared * self.heads[name] * batch).sum().square()


def make_batches(num_steps: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{name: torch.randn(3, generator=generator) for name in "abc"} for _ in range(num_steps)]


def diff(sign: str) -> str:
    """The training loop of the README before (``-``) or after (``+``) the change."""
    (block,) = blocks(README, "diff")
    lines = [line for line in block.splitlines() if line[:1] in ("", " ", sign)]
    return "\n".join(line[1:] for line in lines)


CLIPPING = "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"


def unclipped(source: str) -> str:
    """A loop without its clipping."""
    assert source.count(CLIPPING) == 1
    return source.replace(CLIPPING, "")


def run_loop(source: str, num_steps: int = 4) -> tuple[Model, torch.optim.Optimizer]:
    space: dict[str, Any] = {"torch": torch, "model": Model(), "loader": make_batches(num_steps)}
    exec(compile(source, "README.md", "exec"), space)
    return space["model"], space["optimizer"]


def assert_equal(model: Model, other: Model) -> None:
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_loop_before_the_change():
    """It is a usual one, and the sum of the losses."""
    model, optimizer = run_loop(diff("-"))
    assert type(optimizer) is torch.optim.AdamW
    by_hand = Model()
    adamw = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    for batches in make_batches():
        adamw.zero_grad()
        for name, batch in batches.items():
            by_hand.loss(name, batch).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        adamw.step()
    assert_equal(model, by_hand)


def test_the_loop_after_the_change():
    """It runs, and performs a surgery in every step."""
    model, optimizer = run_loop(diff("+"))
    assert isinstance(optimizer, PCGrad)
    assert isinstance(optimizer.base, torch.optim.AdamW)
    assert optimizer.diagnostics.tasks == ("a", "b", "c")
    assert optimizer.diagnostics.num_surgeries == len(make_batches())
    plain, _ = run_loop(diff("-"))
    assert not torch.equal(model.shared, plain.shared)
    norms = [parameter.grad.norm() for parameter in model.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(1.0, rel=1e-4)  # it does clip


def test_the_loop_after_the_change_is_algorithm_1():
    """The gradient of its first step is one that the oracle can reach, and not the plain sum."""
    model, _ = run_loop(unclipped(diff("+")), num_steps=1)
    plain, _ = run_loop(unclipped(diff("-")), num_steps=1)
    by_hand, (batches,) = Model(), make_batches(1)
    grads = [
        torch.autograd.grad(by_hand.loss(name, batch), by_hand.shared)[0].numpy()
        for name, batch in batches.items()
    ]
    found = model.shared.grad.numpy()
    assert any(np.allclose(found, update, atol=1e-5) for update in every_update(grads))
    assert np.abs(found - plain.shared.grad.numpy()).max() > 0.01


def test_the_change_is_the_one_that_a_reader_makes():
    """The lines that stay are those of a usual loop, and it grows by a few."""
    before, after = (diff(sign).splitlines() for sign in "-+")
    kept = [line for line in before if line.strip() and line in after]
    assert [line.strip() for line in kept] == [
        "for batches in loader:",
        "optimizer.zero_grad()",
        "for name, batch in batches.items():",
        CLIPPING.strip(),
        "optimizer.step()",
    ]
    assert after[0] == "from gradsurgery import PCGrad"
    assert len(after) <= 12


def test_the_short_form():
    """``backward([...])`` and ``step()`` give what the blocks give."""
    prose = README.partition("Or, with the losses at hand")[2]
    calls = re.findall(r"`(optimizer\.[^`]+)`", prose)[:2]
    assert [call.partition("(")[0] for call in calls] == ["optimizer.backward", "optimizer.step"]
    names = re.findall(r"loss_([a-z])", calls[0])
    model = Model()
    optimizer = PCGrad(torch.optim.AdamW(model.parameters(), lr=1e-3))
    for batches in make_batches():
        optimizer.zero_grad()
        space: dict[str, Any] = {"optimizer": optimizer}
        space |= {f"loss_{name}": model.loss(name, batches[name]) for name in names}
        for call in calls:
            exec(compile(call, "README.md", "exec"), space)
    by_blocks, _ = run_loop(unclipped(diff("+")))
    assert_equal(model, by_blocks)


def test_options_that_it_names():
    """The calls that build an optimizer in a sentence build one."""
    base = torch.optim.AdamW(Model().parameters())
    calls = [code for code in code_of(README) if re.match(r"PCGrad\(", code)]
    assert calls
    for call in calls:
        assert isinstance(eval(call, {"PCGrad": PCGrad, "base": base}), PCGrad)
    wrappers = (gradsurgery.MultiTaskOptimizer.__init__,)
    for option in re.findall(r"`([a-z_]+)=[^`(=]+`", README):
        assert any(option in inspect.signature(each).parameters for each in wrappers), option


def test_the_names_that_it_promises_are_there():
    (table,) = re.findall(r"^## What you get\n(.*?)^- ", README, re.MULTILINE | re.DOTALL)
    names = [
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`([A-Za-z_.]+)`", row)
    ]
    assert {"PCGrad", "MultiTaskOptimizer", "combine"} <= set(names)
    for name in names:
        if name.startswith("optimizer."):
            assert hasattr(PCGrad(torch.optim.SGD(Model().parameters())), name.split(".")[1])
        else:
            assert name in gradsurgery.__all__, name


# Commands, links and files.


@pytest.mark.parametrize("page", PAGES)
def test_make_targets(page):
    named = {
        target for code in code_of(PAGES[page]) for target in re.findall(r"^make ([a-z]+)", code)
    }
    assert named
    assert named <= TARGETS


def test_make_run_trains_the_two_side_by_side():
    """In two processes, a recipe each; every recipe that `run` takes by itself."""
    from benchmarks.multitask_bert.recipes.catalog import SIDE_BY_SIDE

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\t\$\(MAKE\) .* -j2 (.*)$", makefile, re.MULTILINE)
    assert [name.replace("run/", "smet-walker/") for name in line.split()] == list(SIDE_BY_SIDE)
    assert "run smet-walker/$* --seeds 3 " in makefile


def test_the_two_commands():
    assert {"run", "test", "setup", "lint"} <= TARGETS
    assert "make run" in README
    assert "make test" in README


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_of_the_documentation(page):
    assert_links((ROOT / "docs" / page).read_text(encoding="utf-8"), ROOT / "docs")


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    assert_links(PAGES[page], ROOT)


def assert_links(text: str, folder: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    local = [target for target in targets if target and "://" not in target]
    missing = [target for target in local if not (folder / target).exists()]
    assert missing == []


def test_files_that_contributing_names():
    named = [code for code in code_of(CONTRIBUTING) if re.fullmatch(r"[\w/]+\.(py|md|toml)", code)]
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "gradsurgery" / name).exists(), name


def commands() -> list[list[str]]:
    start = "python -m benchmarks.multitask_bert "
    return [
        code.removeprefix(start).split()
        for page in PAGES.values()
        for code in code_of(page)
        if code.startswith(start)
    ]


def test_the_commands_of_the_benchmark(tmp_path, monkeypatch, capsys):
    """Each is understood: it goes on to its data, or its run folders, which are not here."""
    monkeypatch.chdir(tmp_path)
    assert {"list", "run", "report"} <= {command[0] for command in commands()}
    for command in commands():
        if command[0] in ("run", "report"):
            assert main(command) == 2
            folder = {"run": "DIR", "report": "runs"}[command[0]]
            assert folder in capsys.readouterr().err.split(":")[1]
        elif command[0] == "list":
            assert main(command) == 0
        else:  # it may want the network
            with pytest.raises(SystemExit, match=r"^0$"):
                main([command[0], "--help"])
    assert not list(tmp_path.iterdir())


def test_the_recipes_that_it_names():
    named = re.findall(r"\b[a-z]+(?:-[a-z]+)*/v\d[\w.-]*", README)
    assert named
    assert set(named) <= set(all_recipes())
