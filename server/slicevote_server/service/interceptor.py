"""The interceptor that every RPC of every service passes: request id, metrics, and errors as statuses.

It is installed in the server, so no RPC can be added without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from slicevote_server.errors import EngineError, InvalidInput
from slicevote_server.service.call import Call, enter_call
from slicevote_server.service.errors import internal_status, status_of
from slicevote_server.service.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
"""Metadata key of the request id: a client may choose one; the server sends back the one it used."""

_CHOSEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_DEADLINE_SLACK_S = 0.25

Context = grpc.aio.ServicerContext[Any, Any]


class _Undecodable:
    """Stands for a request that cannot be decoded."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Handles what all RPCs have in common.

    Args:
        metrics: Where calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call in one of the same arity."""
        handler = await continuation(handler_call_details)
        # gRPC itself answers a method that nobody has, with UNIMPLEMENTED.
        return handler and self._wrap(handler, handler_call_details.method.rpartition("/")[2])

    def _wrap(self, handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        kinds = (
            ("unary_unary", grpc.unary_unary_rpc_method_handler),
            ("unary_stream", grpc.unary_stream_rpc_method_handler),
            ("stream_unary", grpc.stream_unary_rpc_method_handler),
            ("stream_stream", grpc.stream_stream_rpc_method_handler),
        )
        kind, make = next(entry for entry in kinds if getattr(handler, entry[0]) is not None)
        behaviour = getattr(handler, kind)

        async def unary(request: Any, context: Context) -> Any:
            async with self._call(method, context):
                return await behaviour(_checked(request), context)
            raise AssertionError("a call that failed has been aborted")

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._call(method, context):
                answers = behaviour(_checked(request), context)
                if not hasattr(answers, "__aiter__"):
                    # A handler that writes to the context.
                    await answers
                    return
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        yield answer

        return make(
            stream if kind.endswith("_stream") else unary,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    @contextlib.asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        """Count a call, and turn any failure of it into the right status and a log line."""
        call = Call(method, _request_id(context))
        enter_call(call)
        with self._metrics.call(call):
            await context.send_initial_metadata(((REQUEST_ID, call.request_id),))
            try:
                yield
            except EngineError as error:
                status = status_of(error, call.request_id)
                logger.info("%s: %s %s", method, type(error).__name__, error.reason)
            except (asyncio.CancelledError, GeneratorExit):
                # The client's clock started a little before ours, and it is the client that hangs up.
                remaining_s = context.time_remaining()
                too_late = remaining_s is not None and remaining_s < _DEADLINE_SLACK_S
                if not call.answered:
                    call.code = "DEADLINE_EXCEEDED" if too_late else "CANCELLED"
                raise
            except grpc.aio.AbortError:
                # A handler of gRPC's own, as that of the health service, has answered already.
                call.code = context.code().name if isinstance(context.code(), grpc.StatusCode) else "UNKNOWN"
                raise
            except Exception as error:  # noqa: BLE001  what nobody foresaw is answered here
                status = internal_status(call.request_id)
                # Where it happened, and not its text, which may hold anything.
                trace = "".join(traceback.format_tb(error.__traceback__))
                logger.error("%s failed: %s\n%s", method, type(error).__name__, trace)
            else:
                return
            call.code = code_pb2.Code.Name(status.code)
            # Outside of the handlers above: an exception that was still being handled would live as long as the call.
            await _abort(context, status)


async def _abort(context: Context, status: status_pb2.Status) -> NoReturn:
    answer = rpc_status.to_status(status)
    await context.abort(answer.code, answer.details, answer.trailing_metadata)


def _request_id(context: Context) -> str:
    chosen = dict(context.invocation_metadata() or ()).get(REQUEST_ID)
    if isinstance(chosen, str) and _CHOSEN_ID.fullmatch(chosen):
        return chosen
    return secrets.token_hex(8)


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Return a deserializer that leaves it to the call to refuse what is no message; gRPC would answer INTERNAL."""

    def read(data: bytes) -> Any:
        try:
            return data if deserialize is None else deserialize(data)
        except DecodeError:
            return _Undecodable()

    return read


def _checked(request: Any) -> Any:
    """Return a request, or a stream of requests, that raises InvalidInput where one is no message."""
    if hasattr(request, "__aiter__"):
        return _checked_stream(request)
    if isinstance(request, _Undecodable):
        raise InvalidInput(
            "the request cannot be decoded as the message that this method takes; check the stubs against the contract",
            reason="UNDECODABLE",
        )
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)
