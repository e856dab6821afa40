"""Output for people: nothing that comes from a file or an archive is read as markup or as a control sequence."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

_UNLIMITED = 1_000_000


def printable(text: object) -> str:
    r"""Return a text with every character that does not print escaped, such as `\x1b`.

    Escaped are control characters, line breaks, characters that turn the direction of writing, and what a file name
    holds that is not text.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are; without a terminal its width has no limit."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say(text: object) -> None:
    """Print a line on stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def say_error(text: object) -> None:
    """Print a line on stderr."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


class Middle:
    """A path in a table: where it does not fit, its middle gives way, for its end tells most."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the least and the natural width."""
        return Measurement(min(8, cell_len(self.text)), cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the text, cut to the width."""
        yield Text(cut_middle(self.text, options.max_width), no_wrap=True, overflow="ellipsis")


def cut_middle(path: str, width: int) -> str:
    """Return a path of at most so many cells: its first folder and as many of the last ones as fit.

    "/data/study-1/ct/series-3" becomes "/data/…/ct/series-3"; of a last part that does not fit, its end is kept.
    """
    if cell_len(path) <= width:
        return path
    parts = path.split("/")
    kept = 2 if path.startswith("/") else 1
    for head in ("/".join(parts[:kept]) + "/…/", "…/"):
        for start in range(kept + 1, len(parts)):
            shorter = head + "/".join(parts[start:])
            if cell_len(shorter) <= width:
                return shorter
    end = path
    while end and cell_len(end) >= width:
        end = end[1:]
    return f"…{end}"
