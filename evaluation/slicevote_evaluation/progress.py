"""Progress of a long run: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class Reporter:
    """Reports to a console, usually standard error.

    Args:
        console: The console.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Report the progress of one stage; the context is a function to call with every amount done.

        Args:
            title: What is being done.
            total: How much there is to do.
            unit: What is counted.
        """
        started = told = time.monotonic()
        done = 0
        terminal = self._console.is_terminal
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        with Progress(
            TextColumn("{task.description}"), *columns, console=self._console, transient=True, disable=not terminal
        ) as bar:
            task = bar.add_task(title, total=total)

            def advance(count: int) -> None:
                nonlocal done, told
                done += count
                bar.update(task, completed=done)
                now = time.monotonic()
                if not terminal and now - told >= _LINE_EVERY_S and done:
                    told = now
                    left_s = (now - started) / done * (total - done)
                    self.say(f"{title}: {done:,} of {total:,} {unit}, {_clock(left_s)} left")

            yield advance
        self.say(f"{title}: {done:,} of {total:,} {unit} in {_clock(time.monotonic() - started)}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
