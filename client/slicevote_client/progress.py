"""How far something is: a bar on a terminal, plain lines elsewhere, nothing for programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress(what: str, total: int | None, silent: bool) -> Iterator[Any]:
    """Shows progress: a bar on a terminal, plain lines elsewhere, nothing for programs."""
    if silent or not sys.stderr.isatty():

        def say(line: str | None, **_: int) -> None:
            if line and not silent:
                print(line, flush=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(line: str | None, *, done: int | None = None, total: int | None = None) -> None:
            if line:
                bar.console.print(line, highlight=False, soft_wrap=True)
            if done is None:
                bar.advance(task)
            else:
                bar.update(task, completed=done, total=total)

        yield advance
