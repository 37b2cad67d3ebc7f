# SPDX-License-Identifier: MIT
"""Runs beside the published SDK, in its environment, and makes the calls that a test asks for.

    python -I sdk_driver.py CONFIG NODE

A line of stdin is a call, {"path": ["jobs", "run_job"], "args": [...], "kwargs": {...}}; a line of
stdout is its answer, {"value": ...} or {"raised": CLASS, "text": ...}, with the seconds it took.
A path with `stub` in it leads to a method of gRPC: kwargs are the fields of its request. Bytes are
written as {"bytes": HEX}. Standard library and the SDK alone.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any


def call(client: Any, path: list[str], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """What the call returns, a stream read to its end."""
    method = client
    for name in path:
        method = getattr(method, name)
    grpc = "stub" in path
    result = method(request(path[-1], kwargs)) if grpc else method(*args, **kwargs)
    if isinstance(result, Iterator):
        return [plain(item) for item in result]
    return plain(result)


def request(method: str, fields: dict[str, Any]) -> Any:
    """The method's request: messages are named after their method, but for the empty one."""
    messages = importlib.import_module("joblet.proto.joblet_pb2")
    kind = getattr(messages, f"{method}Request", messages.EmptyRequest)
    return kind(**fields)


def plain(value: Any) -> Any:
    """A value of the SDK as JSON takes it: of a message the fields that are set."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if hasattr(value, "ListFields"):
        return {field.name: plain(content) for field, content in value.ListFields()}
    if isinstance(value, dict) or hasattr(value, "items"):
        return {key: plain(content) for key, content in value.items()}
    if isinstance(value, (str, int, float, type(None))):
        return value
    return [plain(item) for item in value]


def main() -> None:
    config, node = sys.argv[1:]
    joblet = importlib.import_module("joblet")
    with joblet.JobletClient(config_path=config, node_name=node) as client:
        for line in sys.stdin:
            begun = time.monotonic()
            answer: dict[str, Any]
            try:
                answer = {"value": call(client, **json.loads(line))}
            except Exception as error:
                answer = {"raised": type(error).__name__, "text": str(error)}
            answer["seconds"] = time.monotonic() - begun
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
