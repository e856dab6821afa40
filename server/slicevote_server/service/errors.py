"""Errors to gRPC statuses with google.rpc details, in one table."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from slicevote.contract import ERROR_DOMAIN

from slicevote_server import errors
from slicevote_server.service.metrics import CallOutcome, Metrics
from slicevote_server.service.responses import duration

logger = logging.getLogger(__name__)

_RETRY_UNAVAILABLE_S = 1.0
_DEADLINE_SLACK_S = 0.25

_CODES: dict[type[errors.EngineError], int] = {
    errors.InvalidInput: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.NotReady: code_pb2.FAILED_PRECONDITION,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.ArchiveUnavailable: code_pb2.UNAVAILABLE,
    errors.Cancelled: code_pb2.CANCELLED,
}


@contextlib.asynccontextmanager
async def attempt(
    context: grpc.aio.ServicerContext[Any, Any], call: str, metrics: Metrics
) -> AsyncIterator[CallOutcome]:
    """Counts a call, and turns any failure of it into the right status and a log line.

    A failure that nobody foresaw becomes INTERNAL without its text, which might hold anything; the log has its kind and
    its trace.
    """
    with metrics.call(call) as outcome:
        try:
            yield outcome
        except errors.EngineError as error:
            code = _CODES[type(error)]
            outcome.code = code_pb2.Code.Name(code)
            logger.info("%s: %s %s", call, type(error).__name__, error.reason)
            await _abort(context, code, str(error), _details(error))
        except (asyncio.CancelledError, GeneratorExit):
            # The client's clock began a little before ours, and it is the client that hangs up.
            remaining_s = context.time_remaining()
            too_late = remaining_s is not None and remaining_s < _DEADLINE_SLACK_S
            if not outcome.answered:
                outcome.code = "DEADLINE_EXCEEDED" if too_late else "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001  what nobody foresaw is answered here
            outcome.code = "INTERNAL"
            # Where it happened, and not its words, for the same reason.
            trace = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s failed: %s\n%s", call, type(error).__name__, trace)
            info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=ERROR_DOMAIN)
            await _abort(context, code_pb2.INTERNAL, "an error inside the server; its log has the details", [info])


def _details(error: errors.EngineError) -> list[Message]:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)]
    if isinstance(error, errors.InvalidInput) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.Overloaded):
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_s)))
    if isinstance(error, errors.ArchiveUnavailable):
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(_RETRY_UNAVAILABLE_S)))
    return details


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], code: int, message: str, details: list[Message]
) -> NoReturn:
    packed = []
    for detail in details:
        entry = any_pb2.Any()
        entry.Pack(detail)
        packed.append(entry)
    status = rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed))
    await context.abort(status.code, status.details, status.trailing_metadata)
