# SPDX-License-Identifier: MIT
"""What stands around every method: who calls, may they, and what becomes of an error.

Handlers are plain: they take the request and the Caller, return or yield messages, and raise
JobletError. The wrappers are coroutines themselves: grpc.aio would run anything else in a thread
pool,
and its interceptors do not see the client's certificate.

A client that does not read holds up its own stream and nothing else: a message is asked for when
the one before it is gone. When one is not gone for too long, the handler is closed, with all that
it holds, and the status follows that message: what is left is a call that waits, with at most one
message, for the client or for its connection's end. ABORTED, because who goes on must do so from
where it stood: UNAVAILABLE and INTERNAL are tried again by clients that would begin anew.
"""

import asyncio
import contextlib
import dataclasses
import logging
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

from joblet.errors import Aborted, Internal, JobletError, Unimplemented
from joblet.server import access, audit
from joblet.server.access import Identity, Operation
from joblet.server.rpc import status
from joblet_pb import joblet_pb2 as pb

log = logging.getLogger(__name__)

# operations that change something: they, and refusals of them, are audited
CHANGES: Final = frozenset({"run_job", "stop_job"})
MAX_ID: Final = 36
# the result in the audit of a call that was cut short
NO_ANSWER: Final = "not answered: the client hung up, or the server was stopped"


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    identity: Identity
    address: str

    @property
    def name(self) -> str:
        return self.identity.name


# A long answer may come encoded, so that the event loop does not do it in one go.
Answer = Message | bytes
Unary = Callable[[Any, Caller], Awaitable[Answer]]
Stream = Callable[[Any, Caller], AsyncGenerator[Answer, None]]


def handlers(
    unary: Mapping[str, Unary],
    streams: Mapping[str, Stream],
    *,
    stall_s: float | None,
    on_stalled: Callable[[], None],
) -> list[Any]:
    """Handlers of every method of the contract, by full name ("/joblet.JobService/RunJob").

    stall_s: how long a stream waits for a client that does not read; None: for ever.
    on_stalled: called when one is broken off for that.

    A method that nobody serves answers UNIMPLEMENTED, in a sentence, to whoever may call it.
    """
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)  # its methods tell their streaming kind, whatever the release
    made = []
    for service in file.service:
        name = f"{file.package}.{service.name}"
        methods = {}
        for method in service.method:
            path = f"/{name}/{method.name}"
            decode = _message(method.input_type).FromString
            encode = _encode
            if method.server_streaming:
                stream = streams.get(path, _no_stream(path))
                methods[method.name] = grpc.unary_stream_rpc_method_handler(
                    _guard_stream(path, stream, stall_s, on_stalled), decode, encode
                )
            else:
                handler = unary.get(path, _not_served(path))
                methods[method.name] = grpc.unary_unary_rpc_method_handler(
                    _guard_unary(path, handler), decode, encode
                )
        made.append(grpc.method_handlers_generic_handler(name, methods))
    return made


def _message(name: str) -> type[Message]:
    """ ".joblet.Job" as its class."""
    found: type[Message] = getattr(pb, name.rpartition(".")[2])
    return found


def _encode(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _not_served(path: str) -> Callable[[Any, Caller], Awaitable[Any]]:
    async def handler(request: Any, caller: Caller) -> Any:
        raise _unimplemented(path)

    return handler


def _no_stream(path: str) -> Stream:
    async def handler(request: Any, caller: Caller) -> AsyncGenerator[Message, None]:
        for message in await _not_served(path)(request, caller):
            yield message

    return handler


def _unimplemented(path: str) -> Unimplemented:
    return Unimplemented(
        f"serve {path.rpartition('/')[2]}", "this version of Joblet does not have it yet"
    )


def _caller(context: "grpc.aio.ServicerContext[Any, Any]", path: str) -> Caller:
    """Raises Unauthenticated, PermissionDenied."""
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    address = _address(context.peer())
    identity = access.identify(pem)
    try:
        access.authorise(identity, path)
    except JobletError as error:
        operation = access.OPERATIONS.get(path)
        if operation is None or operation.name in CHANGES:
            audit.record(identity.name, address, path.rpartition("/")[2], str(error), refused=True)
        raise
    return Caller(identity, address)


def _address(peer: str) -> str:
    """ "ipv4:127.0.0.1:40312" as 127.0.0.1:40312, "ipv6:%5B::1%5D:40312" as [::1]:40312."""
    return urllib.parse.unquote(peer.partition(":")[2]) or peer


def _guard_unary(path: str, handler: Unary) -> Any:
    operation = access.OPERATIONS.get(path)

    async def guarded(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Answer:
        try:
            caller = _caller(context, path)
            try:
                response = await handler(request, caller)
            except JobletError as error:
                _audit(operation, caller, path, request, None, str(error))
                raise
            except asyncio.CancelledError:
                # it may have been done all the same: nobody changes anything unseen by hanging up
                _audit(operation, caller, path, request, None, NO_ANSWER)
                raise
            except Exception:
                _audit(operation, caller, path, request, None, str(_bug(path)))
                raise
            _audit(operation, caller, path, request, response, _result(response))
            return response
        except JobletError as error:
            await context.abort(*status.of(error))
        except Exception:  # a bug of ours: the client gets a sentence, the journal the traceback
            log.exception("%s failed", path)
            await context.abort(*status.of(_bug(path)))
        raise AssertionError  # abort raises

    return guarded


def _guard_stream(
    path: str, handler: Stream, stall_s: float | None, on_stalled: Callable[[], None]
) -> Any:
    async def guarded(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        try:
            caller = _caller(context, path)
            try:
                async with contextlib.aclosing(handler(request, caller)) as messages:
                    begun = False
                    async for message in messages:
                        if not begun:
                            # Else they would go with the first message, and with the status again,
                            # which grpc refuses when that message is the one that is not read.
                            await _taken(context.send_initial_metadata(()), stall_s)
                            begun = True
                        await _taken(context.write(message), stall_s)
            except _Stalled:
                on_stalled()
                error = _broken_off(path, stall_s)
                log.info("%s (%s, %s)", error, caller.name, caller.address)
                raise error from None
        except _Gone:
            pass
        except JobletError as error:
            with contextlib.suppress(grpc.aio.InternalError):  # it hung up instead of reading on
                await context.abort(*status.of(error))
        except Exception:
            log.exception("%s failed", path)
            await context.abort(*status.of(_bug(path)))

    return guarded


class _Stalled(Exception):
    """The client does not read."""


class _Gone(Exception):
    """The client hung up."""


async def _taken(sending: Awaitable[None], stall_s: float | None) -> None:
    """Returns when what is sent is on its way. Raises _Stalled, _Gone."""
    try:
        async with asyncio.timeout(stall_s):
            await sending
    except TimeoutError:
        raise _Stalled from None
    except grpc.aio.InternalError:
        raise _Gone from None


def _broken_off(path: str, stall_s: float | None) -> Aborted:
    return Aborted(
        f"go on with {path.rpartition('/')[2]}",
        f"nothing was read for {stall_s:g} s (stream.stall_timeout)",
        hint="ask again, from the offset behind the last byte",
    )


def _bug(path: str) -> Internal:
    return Internal(
        f"serve {path.rpartition('/')[2]}", "a fault of the server", hint="see its journal"
    )


def _result(response: Any) -> str:
    """ "ok", or what an answer says that is about many jobs."""
    many = isinstance(response, pb.DeleteAllJobsResponse)
    return response.message if many else "ok"


def _audit(
    operation: Operation | None,
    caller: Caller,
    path: str,
    request: Any,
    response: Any,
    result: str,
) -> None:
    if operation is None or operation.name not in CHANGES:
        return
    # the job's own id; of a request that was refused, as much of it as an id has
    job = getattr(response, "job_uuid", "") or getattr(response, "uuid", "")
    job = job or getattr(request, "uuid", "")[:MAX_ID]
    # what it runs under, or was to
    profile = getattr(response, "profile", "") or getattr(request, "profile", "")
    what = path.rpartition("/")[2]
    change = _change(request) if isinstance(request, pb.UpdateJobRequest) else ""
    audit.record(caller.name, caller.address, what, result, job=job, profile=profile, change=change)


def _change(request: pb.UpdateJobRequest) -> str:
    """What was asked for: "max_cpu=50 timeout=+30m"."""
    fields = [(field.name, value) for field, value in request.ListFields() if field.name != "uuid"]
    return " ".join(f"{name}={value}" for name, value in fields)
