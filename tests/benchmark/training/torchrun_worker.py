"""What torchrun starts for `test_torchrun.py`: commands of the benchmark, one after the other.

`python -m torch.distributed.run --nproc-per-node=2 -m tests.benchmark.training.torchrun_worker
FOLDER` does what FOLDER/commands.json says, in one process group, and leaves
FOLDER/NUMBER.RANK.json of each: its exit status and what it printed. The exit status is that of the
last one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.multitask_bert.__main__ import main
from benchmarks.multitask_bert.data import corpus as corpora
from benchmarks.multitask_bert.data.synthetic import make_corpus
from benchmarks.multitask_bert.model import regularisers
from benchmarks.multitask_bert.model.encoder import MinBert
from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.training.processes import joined

# In batches of 32: two, three and one, so that a process is without a batch in an evaluation.
NUM_DEV = {"sst": 45, "quora": 70, "sts": 12}
SIZES = {(task, "train"): 40 for task in NUM_DEV} | {(t, "dev"): n for t, n in NUM_DEV.items()}


def fail(what: str) -> None:
    if what in ("SIGINT", "SIGTERM", "SIGKILL"):
        os.kill(os.getpid(), getattr(signal, what))
    elif what == "refuse":
        raise ValueError("must be\nwell, found ill")
    elif what == "crash":
        raise ZeroDivisionError("once in a while")
    elif what == "slow":
        time.sleep(0.03)


@contextlib.contextmanager
def trouble(process: int, what: str, number: int) -> Iterator[None]:
    """Something happens to a process in its n-th training forward pass, to ``slow`` ones in each;
    or there is no space for the n-th event that it writes."""
    if os.environ.get("RANK", "0") != str(process):
        yield
        return
    count = 0
    encode, append = MinBert.forward, Record.append

    def forward(encoder: MinBert, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += encoder.training
        if encoder.training and (count == number or what == "slow"):
            fail(what)
        return encode(encoder, *args, **options)

    def write(record: Record, event: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count < number:
            return append(record, event)
        with mock.patch.object(Path, "open", side_effect=OSError(28, "No space left on device")):
            append(record, event)

    if what == "no space":
        patch = mock.patch.object(Record, "append", write)
    else:
        patch = mock.patch.object(MinBert, "forward", forward)
    with patch:
        yield


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Noise that does not depend on who draws it."""
    with mock.patch.object(regularisers.torch, "randn", lambda *size, device: torch.ones(*size)):
        yield


def run(command: dict[str, Any]) -> dict[str, Any]:
    """One command: its exit status, and what it printed.

    Args:
        command: ``arguments``, and what happens while it runs: ``trouble``, the arguments of
            :func:`trouble`, or that it is ``steady``.
    """
    said = [io.StringIO(), io.StringIO()]
    with (
        mock.patch.object(corpora, "make_corpus", partial(make_corpus, sizes=SIZES)),
        contextlib.redirect_stdout(said[0]),
        contextlib.redirect_stderr(said[1]),
        trouble(*command["trouble"]) if "trouble" in command else contextlib.nullcontext(),
        steady() if command.get("steady") else contextlib.nullcontext(),
    ):
        try:
            status = main(command["arguments"])
        except SystemExit as end:
            status = end.code
    return {"status": status, "out": said[0].getvalue(), "err": said[1].getvalue()}


def serve(folder: Path) -> int:
    torch.set_num_threads(1)
    status = 0
    with joined() as processes:
        for number, command in enumerate(json.loads((folder / "commands.json").read_text())):
            told = run(command)
            (folder / f"{number}.{processes.rank}.json").write_text(json.dumps(told))
            status = told["status"]
    return status


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
