# SPDX-License-Identifier: MIT
"""The gRPC server: its options, its credentials, its port.

The keepalive options are no luxury: with grpc's defaults the published SDK's idle log stream is
killed after 90 s (GOAWAY too_many_pings).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import grpc

from joblet.config import ServerConfig
from joblet.errors import Unavailable
from joblet.server.rpc.guard import Stream, Unary, handlers

log = logging.getLogger(__name__)

MIN_PING_MS: Final = 5000


def options(config: ServerConfig) -> list[tuple[str, int]]:
    limits = config.grpc
    made = [
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_receive_message_length", limits.max_recv_bytes),
        ("grpc.max_send_message_length", limits.max_send_bytes),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams),
        ("grpc.keepalive_time_ms", limits.keepalive_time_us // 1000),
        ("grpc.keepalive_timeout_ms", limits.keepalive_timeout_us // 1000),
        ("grpc.server_handshake_timeout_ms", limits.handshake_timeout_us // 1000),
        # a second server on the port would take every other connection
        ("grpc.so_reuseport", 0),
    ]
    for name, value in (
        ("grpc.max_connection_idle_ms", limits.max_idle_us),
        ("grpc.max_connection_age_ms", limits.max_age_us),
        ("grpc.max_connection_age_grace_ms", limits.max_age_grace_us),
    ):
        if value:
            made.append((name, value // 1000))
    return made


def make(
    config: ServerConfig,
    unary: Mapping[str, Unary],
    streams: Mapping[str, Stream],
    *,
    on_stalled: Callable[[], None] = lambda: None,
) -> grpc.aio.Server:
    """A server bound to its port, not yet started; `on_stalled` as guard.handlers has it. Raises
    Unavailable for a port it cannot have."""
    server = grpc.aio.server(options=options(config))
    stall_us = config.stream.stall_timeout_us
    stall_s = stall_us / 1e6 if stall_us else None
    server.add_generic_rpc_handlers(
        handlers(unary, streams, stall_s=stall_s, on_stalled=on_stalled)
    )
    security = config.security
    credentials = grpc.ssl_server_credentials(
        [(security.server_key.encode(), security.server_cert.encode())],
        root_certificates=security.ca_cert.encode(),
        require_client_auth=True,
    )
    host = config.server.address
    address = f"[{host}]:{config.server.port}" if ":" in host else f"{host}:{config.server.port}"
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise Unavailable(
            f"listen on {address}",
            "the port is taken, or the address is not this host's",
            hint=f"see `ss -ltnp 'sport = :{config.server.port}'`, or change server.port",
        )
    return server
