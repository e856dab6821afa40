"""Progress: a bar on a terminal, plain lines elsewhere, nothing for programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slicevote_client.commands.terminal import console, printable, say


class Advance(Protocol):
    """Reports progress: one step further, or so many steps done of so many; prints a line above the bar if given."""

    def __call__(self, line: str | None, *, done: int | None = None, total: int | None = None) -> None:
        """Report progress."""


@contextlib.contextmanager
def progress(what: str, total: int | None, silent: bool) -> Iterator[Advance]:
    """Show progress on stderr while the block runs.

    Args:
        what: What is going on, for the bar.
        total: Number of steps; None if unknown.
        silent: Show nothing, neither bar nor lines.
    """
    if silent or not sys.stderr.isatty():

        def print_line(line: str | None, *, done: int | None = None, total: int | None = None) -> None:
            if line and not silent:
                say(line)

        yield print_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(line: str | None, *, done: int | None = None, total: int | None = None) -> None:
            if line:
                bar.console.print(printable(line), soft_wrap=True)
            if done is None:
                bar.advance(task)
            else:
                bar.update(task, completed=done, total=total)

        yield advance
