"""How far a run is, while it runs: a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

FIRST_LINE, LINE_EVERY = 10.0, 30.0  # seconds


class Bar:
    """Shows the steps of a run on the standard error stream.

    Args:
        name: of the run.
        total: its steps.
        initial: those that are done.
        is_shown: false in all processes but the first.
    """

    def __init__(self, name: str, total: int, initial: int, *, is_shown: bool) -> None:
        self._name, self._total, self._initial = name, total, initial
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=name,
            unit="step",
            disable=None if is_shown else True,
        )
        self._tells = is_shown and bool(self._bar.disable)
        self._step = initial
        self._started = time.monotonic()
        self._next = self._started + FIRST_LINE

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self) -> None:
        """Counts a step."""
        self._step += 1
        self._bar.update()

    def show(self, texts: Mapping[str, str]) -> None:
        """Shows what is known after a step, by name."""
        self._bar.set_postfix(texts, refresh=False)
        now = time.monotonic()
        if not self._tells or now < self._next:
            return
        self._next = now + LINE_EVERY
        rate = (self._step - self._initial) / max(now - self._started, 1e-9)
        left = (self._total - self._step) / max(rate, 1e-9)
        shown = ", ".join(f"{name} {text}" for name, text in texts.items())
        print(
            f"{self._name}: step {self._step} of {self._total}, {shown}, "
            f"about {_duration(left)} of training left",
            file=sys.stderr,
            flush=True,
        )


def _duration(seconds: float) -> str:
    """Writes a time as people say it.

    Example:
        >>> _duration(50), _duration(3000), _duration(30000)
        ('50 s', '50 min', '8.3 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
