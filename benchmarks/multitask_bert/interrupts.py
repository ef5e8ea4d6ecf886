"""Ctrl-C as a question that is asked between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into an answer, so that a step is never cut in half; the second one
    ends the process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    usual = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, usual)
