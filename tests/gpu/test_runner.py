"""Small programs as jobs: what the runner writes of them, against what each was made to do."""

import json
import signal
import time
from dataclasses import replace

import pytest

from benchmarks.gpu.jobs import Job
from benchmarks.gpu.runner import DONE, FAILED, STOPPED, Outcome, Outcomes, Runner

LONG = 60.0  # seconds that no test waits for


@pytest.fixture
def outcomes(tmp_path):
    return Outcomes(tmp_path / "results" / "outcomes")


@pytest.fixture
def runner(outcomes, tmp_path):
    return Runner(outcomes, {"results": str(tmp_path), "pack": "there"}, grace=5.0)


def program(name, code, minutes=0.0, **options):
    """A job that runs a program, which finds the folder of the test as `here`."""
    start = "import sys, time; from pathlib import Path; here = Path(sys.argv[1])\n"
    return Job(name, ("-c", start + code, "{results}"), minutes, **options)


def adding(name, code=""):
    """A job that writes its name into a file each time that it runs."""
    line = f"with open(here / 'log', 'a') as file: file.write('{name} ')\n"
    return program(name, line + code)


def carry_out(runner, jobs, seconds=LONG):
    started = time.monotonic()
    runner.carry_out(jobs, started + seconds)
    return time.monotonic() - started


def states(runner, jobs):
    return [found.status if (found := runner.outcomes.of(job)) else None for job in jobs]


def test_a_failing_job_is_recorded_and_the_next_goes_on(runner, tmp_path):
    jobs = [adding("a"), adding("b/c", "print('why'); sys.exit('it broke')"), adding("d")]
    carry_out(runner, jobs)
    assert (tmp_path / "log").read_text() == "a b/c d "
    assert states(runner, jobs) == [DONE, FAILED, DONE]
    found = runner.outcomes.of(jobs[1])
    assert found.code == 1
    assert 0 < found.seconds < LONG
    assert runner.outcomes.printed(jobs[1], ".out") == ["why"]
    assert runner.outcomes.printed(jobs[1], ".err") == ["it broke"]


def test_what_is_done_is_not_done_again_and_what_failed_comes_last(runner, tmp_path):
    jobs = [adding("a"), adding("b", "sys.exit(not (here / 'mended').exists())"), adding("c")]
    carry_out(runner, jobs[:2])
    (tmp_path / "mended").touch()
    carry_out(runner, jobs)
    assert (tmp_path / "log").read_text() == "a b c b "
    assert states(runner, jobs) == [DONE] * 3
    carry_out(runner, jobs)
    assert (tmp_path / "log").read_text() == "a b c b "


def test_with_other_arguments_a_job_is_not_done(runner):
    job = adding("a")
    carry_out(runner, [job])
    other = replace(job, arguments=(*job.arguments, "more"))
    assert runner.outcomes.is_done(job)
    assert not runner.outcomes.is_done(other)
    assert runner.outcomes.of(other) is None


def test_time_is_up(runner, tmp_path):
    """One ends as it is asked to, one saves its state, one does not listen, one is not started."""
    runner = replace(runner, processes=3, grace=6.0)  # a busy machine starts programs slowly
    polite = program(
        "polite",
        "try: (here / 'polite').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt: (here / 'saved').touch(); sys.exit(130)",
        alone=False,
    )
    deaf = program(
        "deaf",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); (here / 'deaf').touch()\n"
        "time.sleep(60)",
        alone=False,
    )
    last_moment = program(
        "last-moment",
        "try: (here / 'last').touch(); time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(0)",
        alone=False,
    )
    jobs = [polite, deaf, last_moment, program("next", "")]
    seconds = 20.0
    assert carry_out(runner, jobs, seconds) < seconds + 10.0
    assert all((tmp_path / name).exists() for name in ("polite", "saved", "deaf", "last"))
    assert states(runner, jobs) == [STOPPED, STOPPED, DONE, None]
    assert runner.outcomes.of(deaf).code == -signal.SIGKILL
    assert runner.outcomes.of(polite).code == 130


def test_what_does_not_fit_makes_room_for_a_shorter_one(runner):
    jobs = [program("long", "", minutes=2 * LONG / 60), program("short", "", minutes=0.1)]
    assert carry_out(runner, jobs) < LONG / 2
    assert states(runner, jobs) == [None, DONE]


def test_no_time_at_all(runner):
    jobs = [program("a", "")]
    carry_out(runner, jobs, seconds=0.0)
    assert states(runner, jobs) == [None]


def test_runs_that_took_longer_are_expected_to_take_longer(runner):
    jobs = [program(name, "", minutes=0.5, alone=False) for name in "ab"]
    slow = Outcome("a", jobs[0].arguments, DONE, 0, seconds=10 * 60 * 0.5)
    runner.outcomes.write(jobs[0], slow)
    carry_out(runner, jobs)  # 10 times half a minute are not left of one
    assert states(runner, jobs) == [DONE, None]
    runner.outcomes.write(jobs[0], replace(slow, seconds=60 * 0.5))
    carry_out(runner, jobs)
    assert states(runner, jobs) == [DONE, DONE]


def test_side_by_side_but_those_that_must_be_alone(runner, tmp_path):
    """Two wait for each other; the third, which must be alone, for nobody."""
    meet = "(here / '{}').touch()\nwhile not (here / '{}').exists(): time.sleep(0.01)\n"
    away = "(here / '{}').unlink()"
    quiet = "sys.exit(len([*here.glob('running-*')]))"
    jobs = [
        program("quiet-1", quiet),
        program("a", meet.format("a", "b"), alone=False),
        program("b", meet.format("b", "a"), alone=False),
        program("c", "(here / 'running-c').touch(); time.sleep(1)\n" + away.format("running-c"),
                alone=False),
        program("quiet-2", quiet),
    ]  # fmt: skip
    carry_out(replace(runner, processes=2), jobs)
    assert states(runner, jobs) == [DONE] * 5


def test_an_interrupt_ends_the_jobs_and_is_handed_on(runner, monkeypatch):
    """Ctrl-C once a job is at work; whatever sleeps while that ends is not interrupted again."""
    job = program("a", "time.sleep(60)")
    sleeps = iter([None, KeyboardInterrupt()])
    sleep = time.sleep

    def interrupt_once(seconds):
        if (error := next(sleeps, None)) is not None:
            raise error
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        runner.carry_out([job], time.monotonic() + LONG)
    assert states(runner, [job]) == [STOPPED]


def test_outcomes_are_plain_json(runner):
    job = adding("a/b")
    carry_out(runner, [job])
    raw = json.loads((runner.outcomes.folder / "a" / "b.json").read_text())
    assert (raw["name"], raw["status"], raw["code"]) == ("a/b", DONE, 0)
