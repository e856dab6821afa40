"""The errors of the engine.

Every error has a `reason`, a constant that programs may compare, and a sentence that says what was wrong, where, and
what to do. `service.errors` maps the classes to gRPC codes; no sentence holds anything of a patient.
"""

from __future__ import annotations

from collections.abc import Callable


class EngineError(Exception):
    """Base of all errors that the engine answers with."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Callable[..., EngineError], tuple[object, ...]]:
        # Errors come out of the archive's process; by itself pickle would call the class with its message alone.
        return _revived, (type(self), self.args, vars(self))


def _revived(kind: type[EngineError], arguments: tuple[object, ...], state: dict[str, object]) -> EngineError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(state)
    return error


class InvalidInput(EngineError):
    """The caller sent something that cannot be used; sending it again will not help."""

    def __init__(self, message: str, *, reason: str, field: str = "") -> None:
        super().__init__(message, reason=reason)
        self.field = field
        """Which field of the request is wrong, as `slice.pixels.data`; empty if none in particular."""


class NotFound(EngineError):
    """The volume or backbone that the caller named is not here."""


class NotReady(EngineError):
    """What was asked for cannot be done in the present state, as a search in an empty archive."""


class Overloaded(EngineError):
    """There is no room now; coming back later will help."""

    def __init__(self, message: str, *, retry_after_s: float, reason: str = "OVERLOADED") -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s


class ArchiveUnavailable(EngineError):
    """The archive's engine stopped in the middle of a call and has been restarted, or cannot be reached."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="ARCHIVE_UNAVAILABLE")


class Cancelled(EngineError):
    """The caller went away."""

    def __init__(self) -> None:
        super().__init__("the call was cancelled", reason="CANCELLED")


class StartupError(Exception):
    """The server cannot start as it was told to: a file, a folder, a port or an archive is not as it should be."""
