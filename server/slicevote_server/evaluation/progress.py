"""Shows how far a long run is and how long it still takes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class Reporter:
    """Tells on a console, standard error as a rule, what goes on.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Writes a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, title: str, total: int, unit: str) -> Stage:
        """Begins something that takes a while."""
        return Stage(self._console, title, total, unit)


class Stage:
    """One stage of a run; a context manager.

    Args:
        console: Where to.
        title: What is done.
        total: How much there is, as far as is known.
        unit: Of what.
    """

    def __init__(self, console: Console, title: str, total: int, unit: str) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._unit = unit
        self._done = 0
        self._started = self._told = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            self._line(f"in {_clock(time.monotonic() - self._started)}")

    def expect(self, more: int) -> None:
        """Says that there is more to do than was known."""
        self._total += more
        if self._bar is not None:
            self._bar.update(self._task, total=self._total)

    def advance(self, count: int) -> None:
        """Says that something is done."""
        self._done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif now - self._told >= _LINE_EVERY_S:
            self._told = now
            left_s = (now - self._started) / max(1, self._done) * max(0, self._total - self._done)
            self._line(f"{_clock(left_s)} left")

    def _line(self, ending: str) -> None:
        self._console.print(
            f"{self._title}: {self._done:,} of {max(self._total, self._done):,} {self._unit}, {ending}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
