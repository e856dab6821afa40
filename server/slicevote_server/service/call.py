"""The current call: its request id and outcome, for handlers and log lines."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

ResultT = TypeVar("ResultT")


@dataclass
class Call:
    """One RPC.

    Attributes:
        method: Name of the method, without its service.
        request_id: Names the call in logs, answers and errors.
        code: Name of the gRPC status code that it ended with.
        answered: The result is on its way: a client that hangs up now has what it wanted.
    """

    method: str
    request_id: str
    code: str = "OK"
    answered: bool = False


_current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("call", default=None)


def enter_call(call: Call) -> None:
    """Make a call the current one of this task, and of the threads that work for it."""
    _current.set(call)


def current_call() -> Call:
    """Return the call that is being answered.

    Raises:
        LookupError: No call is being answered. Every RPC passes the interceptor, so this is a bug.
    """
    call = _current.get()
    if call is None:
        raise LookupError("no call is being answered here")
    return call


async def on_thread(executor: ThreadPoolExecutor, work: Callable[[], ResultT]) -> ResultT:
    """Run work that may block on one of the threads, as part of the current call."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(executor, context.run, work)


class RequestIdFilter(logging.Filter):
    """Adds the request id of the current call to every log record, as `request_id`; "-" outside of calls."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id; let every record through."""
        call = _current.get()
        record.request_id = "-" if call is None else call.request_id
        return True
