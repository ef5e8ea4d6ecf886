"""Jobs one after the other, or side by side, until they are done or the time is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.gpu.jobs import Job
from benchmarks.multitask_bert.records.record import write_whole

DONE, FAILED, STOPPED = "done", "failed", "stopped"
_GRACE = 15.0  # seconds that a job has, once asked, to end the step it is in and save its state
_PAUSE = 0.1


@dataclass(frozen=True)
class Outcome:
    """The end of a job.

    Args:
        name: the job's.
        arguments: the job's; with others it has not been done.
        status: DONE, FAILED or STOPPED, which is for want of time.
        code: its exit status; negative, a signal's number.
        seconds: of its last try.
    """

    name: str
    arguments: tuple[str, ...]
    status: str
    code: int
    seconds: float


class Outcomes:
    """The outcomes in a folder, a file a job, beside what the job printed.

    Args:
        folder: made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, job: Job) -> Outcome | None:
        """Finds the outcome of a job; None where it, with these arguments, has none."""
        path = self.path(job, ".json")
        if not path.exists():
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = Outcome(**{**raw, "arguments": tuple(raw["arguments"])})
        return found if found.arguments == job.arguments else None

    def is_done(self, job: Job) -> bool:
        found = self.of(job)
        return found is not None and found.status == DONE

    def write(self, job: Job, outcome: Outcome) -> None:
        write_whole(self.path(job, ".json"), (json.dumps(asdict(outcome)) + "\n").encode())

    def path(self, job: Job, ending: str) -> Path:
        """Names a file of a job: ".json" its outcome, ".out" and ".err" what it printed."""
        return self.folder / f"{job.name}{ending}"

    def printed(self, job: Job, ending: str) -> list[str]:
        """Lines that a job printed, without empty ones."""
        path = self.path(job, ending)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return [line.rstrip() for line in text.splitlines() if line.strip()]


@dataclass
class Runner:
    """Does jobs.

    Args:
        outcomes: where what becomes of them is written.
        folders: what stands for ``{pack}`` and ``{results}``.
        environment: of the processes.
        processes: at most so many jobs at a time.
        root: where they are started.
        grace: seconds that a job has to end when it is asked to.
    """

    outcomes: Outcomes
    folders: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    processes: int = 1
    root: Path = Path()
    grace: float = _GRACE

    def carry_out(self, jobs: Sequence[Job], until: float) -> None:
        """Does what is not done yet.

        A job that the time left is too short for makes room for a later, shorter one. Jobs that
        failed in an earlier call come last.

        Args:
            jobs: the most important first.
            until: on ``time.monotonic()``'s clock; later nothing runs.
        """
        waiting = [job for job in jobs if not self.outcomes.is_done(job)]
        waiting.sort(key=self._has_failed)
        running: list[_Running] = []
        stop_at = until - self.grace
        try:
            while time.monotonic() < stop_at:
                running = self._still(running)
                left = stop_at - time.monotonic()
                while job := self._next(waiting, running, left, self._pace(jobs)):
                    waiting.remove(job)
                    running.append(self._start(job))
                if not running:
                    break
                time.sleep(_PAUSE)
        finally:
            self._stop(running, time.monotonic() + self.grace)

    def _next(
        self, waiting: Sequence[Job], running: Sequence[_Running], left: float, pace: float
    ) -> Job | None:
        if len(running) >= self.processes or any(each.job.alone for each in running):
            return None
        for job in waiting:
            if 60 * job.minutes * (1 if job.alone else pace) <= left:
                return None if job.alone and running else job
        return None

    def _pace(self, jobs: Iterable[Job]) -> float:
        """How much longer than expected the jobs took that ran side by side."""
        done = [(job, found) for job in jobs if (found := self.outcomes.of(job)) and not job.alone]
        done = [(job, found) for job, found in done if found.status == DONE]
        expected = sum(60 * job.minutes for job, _ in done)
        return sum(found.seconds for _, found in done) / expected if expected else 1.0

    def _has_failed(self, job: Job) -> bool:
        found = self.outcomes.of(job)
        return found is not None and found.status == FAILED

    def _start(self, job: Job) -> _Running:
        self.outcomes.path(job, "").parent.mkdir(parents=True, exist_ok=True)
        files = [self.outcomes.path(job, ending).open("wb") for ending in (".out", ".err")]
        process = subprocess.Popen(
            [sys.executable, *(each.format(**self.folders) for each in job.arguments)],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=files[0],
            stderr=files[1],
            # Signals reach the job's own processes with it, and the terminal's none of them. It is
            # no session of its own, which would outlive a machine's end of this one.
            preexec_fn=os.setpgrp,
        )
        print(f"{job.name} ...", file=sys.stderr, flush=True)
        return _Running(job, process, time.monotonic(), files)

    def _still(self, running: Iterable[_Running]) -> list[_Running]:
        """Writes what became of those that have ended; returns the others."""
        left = []
        for each in running:
            code = each.process.poll()
            if code is None:
                left.append(each)
            else:
                self._finish(each, code, FAILED)
        return left

    def _stop(self, running: Sequence[_Running], until: float) -> None:
        for each in running:
            each.send(signal.SIGINT)
        for each in running:
            try:
                code = each.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.send(signal.SIGKILL)
                code = each.process.wait()
            self._finish(each, code, STOPPED)

    def _finish(self, each: _Running, code: int, otherwise: str) -> None:
        for file in each.files:
            file.close()
        status = DONE if code == 0 else otherwise
        seconds = time.monotonic() - each.since
        outcome = Outcome(each.job.name, each.job.arguments, status, code, seconds)
        self.outcomes.write(each.job, outcome)
        print(f"{each.job.name}: {status} after {seconds:.0f} s", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    since: float
    files: Sequence[IO[bytes]]

    def send(self, number: int) -> None:
        """Sends a signal to the job and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
