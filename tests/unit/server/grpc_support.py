# SPDX-License-Identifier: MIT
"""A real gRPC server of ours on the loopback, with mutual TLS, and clients of every kind."""

import asyncio
import contextlib
import datetime
import functools
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pb2

from joblet.config import ServerConfig
from joblet.config.server import Grpc, Security, Server, Streaming
from joblet.errors import Unavailable
from joblet.server.rpc import listener
from joblet.server.rpc.guard import Stream, Unary
from joblet_pb import joblet_pb2 as pb
from tests.unit.rnx.certs import Authority, Pair

NOW = datetime.datetime.now(datetime.UTC)


OURS = "Joblet-CA"


@functools.cache
def authority(name: str) -> Authority:
    return Authority(NOW, name)


@functools.cache
def server_pair() -> Pair:
    return authority(OURS).server("localhost", "127.0.0.1", "::1")


@functools.cache
def client_pair(unit: str, by: str) -> Pair:
    return authority(by).client(unit)


def free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        port: int = sock.getsockname()[1]
        return port


def config(
    address: str = "127.0.0.1", port: int = 0, stall_s: float = 60, **grpc_options: Any
) -> ServerConfig:
    return ServerConfig(
        stream=Streaming(stall_timeout_us=round(stall_s * 1e6)),
        server=Server(address=address, port=port or free_port(address)),
        security=Security(
            server_cert=server_pair().cert,
            server_key=server_pair().key,
            ca_cert=authority(OURS).cert,
        ),
        grpc=Grpc(**grpc_options),
    )


@contextlib.asynccontextmanager
async def serving(
    unary: Mapping[str, Unary],
    streams: Mapping[str, Stream],
    address: str = "127.0.0.1",
    *,
    stall_s: float = 60,
) -> AsyncIterator[str]:
    """The address of a server, "127.0.0.1:PORT". Between finding a port and having it, another
    may take it."""
    while True:
        made = config(address, stall_s=stall_s)
        try:
            server = listener.make(made, unary, streams)
            break
        except Unavailable:
            continue
    await server.start()
    host = f"[{address}]" if ":" in address else address
    try:
        yield f"{host}:{made.server.port}"
    finally:
        await server.stop(0)


def channel(
    target: str, unit: str | None = "admin", *, by: str = OURS, options: Any = ()
) -> grpc.aio.Channel:
    """unit: the certificate's OU; None for a client without one."""
    ca = authority(OURS).cert.encode()
    if unit is None:
        credentials = grpc.ssl_channel_credentials(ca)
    else:
        pair = client_pair(unit, by)
        credentials = grpc.ssl_channel_credentials(ca, pair.key.encode(), pair.cert.encode())
    return grpc.aio.secure_channel(
        target, credentials, options=[("grpc.use_local_subchannel_pool", 1), *options]
    )


def methods() -> dict[str, tuple[type[Any], type[Any], bool]]:
    """Path -> request, response, whether it streams: all of the contract."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return {
        f"/{file.package}.{service.name}/{method.name}": (
            getattr(pb, method.input_type.rpartition(".")[2]),
            getattr(pb, method.output_type.rpartition(".")[2]),
            method.server_streaming,
        )
        for service in file.service
        for method in service.method
    }


METHODS = methods()


async def call(channel: grpc.aio.Channel, path: str, request: Any = None) -> Any:
    """The answer, or all answers of a stream. Raises grpc.aio.AioRpcError."""
    wanted, _, streams = METHODS[path]
    message = wanted() if request is None else request
    if streams:
        return [answer async for answer in stream(channel, path, message)]
    return await unary(channel, path, message)


def unary(channel: grpc.aio.Channel, path: str, request: Any) -> Any:
    wanted, answer, _ = METHODS[path]
    method = channel.unary_unary(
        path, request_serializer=wanted.SerializeToString, response_deserializer=answer.FromString
    )
    return method(request, timeout=20)


def stream(channel: grpc.aio.Channel, path: str, request: Any) -> Any:
    wanted, answer, _ = METHODS[path]
    method = channel.unary_stream(
        path, request_serializer=wanted.SerializeToString, response_deserializer=answer.FromString
    )
    return method(request, timeout=20)


async def failure(channel: grpc.aio.Channel, path: str, request: Any = None) -> tuple[Any, str]:
    """(status, details) of a call that fails."""
    try:
        answer = await asyncio.wait_for(call(channel, path, request), 20)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"{path} answered {answer!r}")
