"""Ctrl-C as a question that is asked between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts(*, is_launched: bool = False) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into an answer, so that a step is never cut in half; the second one
    ends the process as usual.

    Args:
        is_launched: by torchrun, which sends SIGTERM as well, hands on a Ctrl-C that the terminal
            has sent to its processes already, and ends them itself where they take too long: both
            signals ask, and asking again changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    numbers = (signal.SIGINT, signal.SIGTERM) if is_launched else (signal.SIGINT,)
    usual = {number: signal.getsignal(number) for number in numbers}

    def remember(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if not is_launched:
            signal.signal(number, usual[signal.SIGINT])

    for number in numbers:
        signal.signal(number, remember)
    try:
        yield lambda: asked
    finally:
        for number in numbers:
            signal.signal(number, usual[number])
