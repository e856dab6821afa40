"""Something decoded once, shared, and dropped when the last of those who share it lets go."""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """Keeps what a function made until every holder has let go; then it is made anew on demand.

    The 30 volumes of a 4-D file share one array so: it is decompressed once, not 30 times, and its memory is free
    again when the last of them is done. Safe to use from several threads.
    """

    def __init__(self, make: Callable[[], T], holders: int = 1) -> None:
        """Keeps nothing yet.

        Args:
            make: Makes the thing.
            holders: How many share it, numbered from 0.
        """
        self._make = make
        self._holders = frozenset(range(holders))
        self._let_go: set[int] = set()
        self._thing: T | None = None
        self._lock = Lock()

    def get(self, holder: int = 0) -> T:
        """Gives the thing; makes it where there is none."""
        with self._lock:
            self._let_go.discard(holder)
            if self._thing is None:
                self._thing = self._make()
            return self._thing

    def release(self, holder: int = 0) -> None:
        """Lets go."""
        with self._lock:
            self._let_go.add(holder)
            if self._let_go == self._holders:
                self._thing = None
