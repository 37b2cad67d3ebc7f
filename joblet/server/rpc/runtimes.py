# SPDX-License-Identifier: MIT
"""RuntimeService: this server has no runtimes, and says so (CONTRACT: the list must exist)."""

from collections.abc import Mapping

from joblet.server.rpc.guard import Caller, Unary
from joblet_pb import joblet_pb2 as pb


async def list_runtimes(request: pb.EmptyRequest, caller: Caller) -> pb.ListRuntimesResponse:
    return pb.ListRuntimesResponse()


UNARY: Mapping[str, Unary] = {"/joblet.RuntimeService/ListRuntimes": list_runtimes}
