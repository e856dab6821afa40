"""The table of errors: gRPC statuses with google.rpc details."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from slicevote.contract import ERROR_DOMAIN

from slicevote_server import errors
from slicevote_server.service.responses import duration

_RETRY_UNAVAILABLE_S = 1.0

CODES: Mapping[type[errors.EngineError], int] = {
    errors.InvalidInput: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.NotReady: code_pb2.FAILED_PRECONDITION,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.ArchiveUnavailable: code_pb2.UNAVAILABLE,
    errors.Cancelled: code_pb2.CANCELLED,
}
"""Status code of every class of errors; a class that is not listed has that of its base class."""


def status_of(error: errors.EngineError, request_id: str) -> status_pb2.Status:
    """Return the status that answers a call in which an error was raised."""
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), code_pb2.INTERNAL)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)]
    if isinstance(error, errors.InvalidInput) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.Overloaded):
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_s)))
    if isinstance(error, errors.ArchiveUnavailable):
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(_RETRY_UNAVAILABLE_S)))
    return _status(code, str(error), details, request_id)


def internal_status(request_id: str) -> status_pb2.Status:
    """Return the status for an unforeseen failure, without the failure's text, which may hold anything."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=ERROR_DOMAIN)
    return _status(
        code_pb2.INTERNAL, f"an error inside the server; see request {request_id} in its log", [info], request_id
    )


def _status(code: int, message: str, details: list[Message], request_id: str) -> status_pb2.Status:
    packed = []
    for detail in (*details, error_details_pb2.RequestInfo(request_id=request_id)):
        entry = any_pb2.Any()
        entry.Pack(detail)
        packed.append(entry)
    return status_pb2.Status(code=code, message=message, details=packed)
