"""Commands of the benchmark in children of one warm process, each as if it had been started anew.

A start from nothing imports torch for seconds; a fork of a process that has imported it takes
hundredths of one. What the parent imported is all that two commands share.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from tests.paths import ROOT

THREE = ("sst", "quora", "sts")
SIZES = {
    (task, split): 40 if split == "train" else 12
    for task in THREE
    for split in ("train", "dev", "test")
}


class Process:
    """A command at work, or what became of it."""

    def __init__(self, commands: Commands, pid: int, folder: Path) -> None:
        self.pid = pid
        self._commands = commands
        self._folder = folder

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit status; that of a process that a signal ended is minus the signal's number."""
        return os.waitstatus_to_exitcode(int(self._commands.ask({"wait": self.pid})))

    @property
    def out(self) -> str:
        return (self._folder / f"out-{self.pid}").read_text()

    @property
    def err(self) -> str:
        return (self._folder / f"err-{self.pid}").read_text()


class Commands:
    """The warm process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.commands"],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def start(self, *arguments: str | Path, **options: Any) -> Process:
        """Starts ``python -m benchmarks.multitask_bert`` with these arguments.

        Args:
            arguments: of the command line.
            options: ``memory`` and ``file_bytes``, limits in bytes, the first beyond what the
                process has at its start; ``seconds`` of processor time; ``kill_at``, the number of
                the moment of writing at which the process kills itself; ``count``, a file for the
                number of those moments.
        """
        order = {"run": list(map(str, arguments)), "folder": str(self._folder), **options}
        return Process(self, int(self.ask(order)), self._folder)

    def run(self, *arguments: str | Path, **options: Any) -> tuple[int, Process]:
        """The same to its end: exit status and what it printed."""
        process = self.start(*arguments, **options)
        return process.wait(), process

    def ask(self, order: dict[str, Any]) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def _serve() -> None:
    import torch

    from benchmarks.multitask_bert.__main__ import main
    from benchmarks.multitask_bert.data import corpus as corpora
    from benchmarks.multitask_bert.data import synthetic
    from benchmarks.multitask_bert.training import predictions

    torch.set_num_threads(1)
    assert predictions  # imported for the children
    corpora.make_corpus = partial(synthetic.make_corpus, sizes=SIZES)
    # The first step of all imports as much again.
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        main(["run", "smet-walker/v2-dropout-0.3", "--max-steps", "1", "--out", out])
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitpid(order["wait"], 0)[1], flush=True)
        elif (pid := os.fork()) == 0:
            status = 1
            try:
                status = _command(order)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        else:
            print(pid, flush=True)


def _command(order: dict[str, Any]) -> int:
    from benchmarks.multitask_bert.__main__ import main

    for number, name in ((1, "out"), (2, "err")):
        path = Path(order["folder"]) / f"{name}-{os.getpid()}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin.close()
    if "memory" in order:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + order["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if "file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    if "seconds" in order:
        resource.setrlimit(resource.RLIMIT_CPU, (order["seconds"],) * 2)
    moments = _Moments(order.get("kill_at"))
    try:
        return main(order["run"])
    except SystemExit as end:  # argparse's way out
        return int(end.code or 0)
    finally:
        if "count" in order:
            Path(order["count"]).write_text(str(moments.number))


class _Moments:
    """The moments at which a process that writes can be cut off; at one of them it kills itself."""

    def __init__(self, kill_at: int | None) -> None:
        from benchmarks.multitask_bert.records.record import Record

        self.number = 0
        self._kill_at = kill_at
        fsync, replace, append = os.fsync, os.replace, Record.append

        def cut_fsync(descriptor: int) -> None:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE and self._is_now():
                os.truncate(descriptor, os.fstat(descriptor).st_size // 2)  # half of it was written
                self._kill()
            self._pass()
            fsync(descriptor)
            self._pass()

        def cut_replace(source: Path, target: Path) -> None:
            self._pass()
            replace(source, target)
            self._pass()

        def cut_append(record: Any, event: Any) -> None:
            if self._is_now():
                with (record.folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(event)[:20])
                self._kill()
            append(record, event)
            self._pass()

        os.fsync, os.replace, Record.append = cut_fsync, cut_replace, cut_append

    def _is_now(self) -> bool:
        self.number += 1
        return self.number == self._kill_at

    def _pass(self) -> None:
        if self._is_now():
            self._kill()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve()
