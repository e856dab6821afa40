"""Errors of the client."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from slicevote.contract import DISK_FULL


class InvalidOption(ValueError):
    """An argument of a call is not one that slicevote knows; the message names those that it does."""


class ServerError(Exception):
    """A call failed.

    Attributes:
        code: Name of the gRPC status code, such as "INVALID_ARGUMENT".
        reason: A constant that programs may compare, such as "SLICES_MISSING"; empty if the server gave none.
        field: The field of the request that was wrong; empty if none in particular.
        retry_after_s: When to try again, in seconds; None where that does not help, or is not known.
    """

    def __init__(
        self, message: str, *, code: str, reason: str = "", field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.field = field
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed shortly after."""
        return self.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and self.reason != DISK_FULL


UNREACHABLE = "UNREACHABLE"
"""Reason of an error that no server gave: there is none at the address."""


def server_error(error: grpc.Call, address: str) -> ServerError:
    """Return a gRPC error with its google.rpc details unpacked.

    Args:
        error: The call that failed; gRPC raises it as its error.
        address: Address of the server, for the message where nothing answers there.
    """
    code: str = error.code().name
    message: str = error.details() or code
    reason = field = ""
    retry_after_s = None
    status = rpc_status.from_call(error)
    if status is None and code == "UNAVAILABLE":
        message = f"no server answers at {address}: {_unreachable_because(message)}"
        reason = UNREACHABLE
    elif status is None and code == "UNIMPLEMENTED":
        message = f"the server at {address} is not slicevote-server, or an older one ({message})"
    for detail in status.details if status is not None else ():
        info, request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(request) and request.field_violations:
            field = request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return ServerError(message, code=code, reason=reason, field=field, retry_after_s=retry_after_s)


def _unreachable_because(details: str) -> str:
    """Return why a server cannot be reached and what to do, from what gRPC says of it."""
    for sign, meaning in _UNREACHABLE_BECAUSE.items():
        if sign in details:
            return meaning
    return details


_UNREACHABLE_BECAUSE = {
    "Failed parsing HTTP/2": "something else than slicevote-server listens there; check the port",
    "address lookup failed": "there is no host of that name",
    "refused": "is 'slicevote-server serve' running there? --server or SLICEVOTE_SERVER names another address",
}
"""Signs in gRPC's details, and what they mean."""
