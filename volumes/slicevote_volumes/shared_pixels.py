"""Pixels that are decoded once, shared by several volumes, and dropped when the last of them is done."""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedPixels(Generic[T]):
    """Keeps decoded pixels until all users have released them, and decodes them again on demand.

    The 30 volumes of a 4-D file share one array this way: it is decompressed once rather than 30 times, and its memory
    is freed when the last volume is done. Safe to use from several threads.
    """

    def __init__(self, decode: Callable[[], T], users: int = 1) -> None:
        """Prepare the pixels; nothing is decoded yet.

        Args:
            decode: Decodes the pixels.
            users: How many users share them, numbered from 0.
        """
        self._decode = decode
        self._users = frozenset(range(users))
        self._released: set[int] = set()
        self._pixels: T | None = None
        self._lock = Lock()

    def get(self, user: int = 0) -> T:
        """Return the pixels, decoding them if necessary."""
        with self._lock:
            self._released.discard(user)
            if self._pixels is None:
                self._pixels = self._decode()
            return self._pixels

    def release(self, user: int = 0) -> None:
        """Release the pixels on behalf of one user."""
        with self._lock:
            self._released.add(user)
            if self._released == self._users:
                self._pixels = None
