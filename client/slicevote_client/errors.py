"""What can go wrong between a client and a server."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class ServerError(Exception):
    """A call failed.

    Attributes:
        code: Name of the gRPC status code, as "INVALID_ARGUMENT".
        reason: A constant that programs may compare, as "SLICES_MISSING"; empty if the server gave none.
        field: Which field of the request was wrong; empty if none in particular.
        retry_after_s: When to come back, where coming back helps.
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
        """Whether the same call may succeed later."""
        return self.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


def server_error(error: grpc.Call, address: str) -> ServerError:
    """Gives a gRPC error with its google.rpc details unpacked.

    Args:
        error: The call that failed; gRPC raises it as its error.
        address: Of the server, for the sentence where it cannot be reached.
    """
    code: str = error.code().name
    message: str = error.details() or code
    reason = field = ""
    retry_after_s = None
    status = rpc_status.from_call(error)
    if status is None and code == "UNAVAILABLE":
        message = f"no server answers at {address} ({message}); is 'slicevote-server serve' running there?"
        reason = "UNREACHABLE"
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
