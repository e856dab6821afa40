"""Output for people: nothing that comes from a file or an archive is read as markup or as a control sequence."""

from __future__ import annotations

import sys

from rich.console import Console

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
