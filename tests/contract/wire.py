# SPDX-License-Identifier: MIT
"""Compares a proto descriptor with the facts in contract.json. No pytest, no grpc.

Compared is what travels: paths of methods, whether they stream, and number, type and
repeated-ness of every field, message by message from each method down. Names of messages and
fields do not travel; more methods and more fields than the contract has are allowed.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

FACTS = Path(__file__).with_name("contract.json")

Type = descriptor_pb2.FieldDescriptorProto.Type
LABEL = descriptor_pb2.FieldDescriptorProto.Label
REPEATED = LABEL.Value("LABEL_REPEATED")


def facts() -> dict[str, Any]:
    """contract.json: package, services, messages, legacy_fields."""
    loaded: dict[str, Any] = json.loads(FACTS.read_text())
    return loaded


@dataclasses.dataclass(frozen=True)
class Shape:
    """What of a field travels. `message` is the full name for a message, else ""."""

    type: str
    repeated: bool
    message: str = ""

    def __str__(self) -> str:
        return f"{self.type}{'[]' if self.repeated else ''}"


class Descriptor:
    """A file's messages by full name, and its methods by path."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self.messages: dict[str, descriptor_pb2.DescriptorProto] = {}
        for message in file.message_type:
            self._enter(file.package, message)
        self.methods = {
            f"/{file.package}.{service.name}/{method.name}": method
            for service in file.service
            for method in service.method
        }

    def _enter(self, scope: str, message: descriptor_pb2.DescriptorProto) -> None:
        name = f"{scope}.{message.name}"
        self.messages[name] = message
        for nested in message.nested_type:
            self._enter(name, nested)

    def fields(self, message: str) -> dict[int, Shape]:
        return {field.number: self._shape(field) for field in self.messages[message].field}

    def _shape(self, field: descriptor_pb2.FieldDescriptorProto) -> Shape:
        target = field.type_name.removeprefix(".")
        entry = self.messages.get(target)
        if entry is not None and entry.options.map_entry:
            key, value = (str(self._shape(part)) for part in entry.field)
            return Shape(f"map<{key}, {value}>", repeated=False)
        name = Type.Name(field.type).removeprefix("TYPE_").lower()
        return Shape(name, field.label == REPEATED, target)


def wanted(field: dict[str, Any]) -> Shape:
    """The shape of a field of the facts."""
    name = field["type"]
    if name == "map":
        name = f"map<{field['key_type']}, {field['value_type']}>"
    return Shape(name, field.get("repeated", False), field.get("message_type", ""))


def violations(contract: dict[str, Any], ours: Descriptor) -> Iterator[str]:
    """What existing clients would stumble over, one line each."""
    for service, methods in contract["services"].items():
        for name, method in methods.items():
            path = f"/{service}/{name}"
            have = ours.methods.get(path)
            if have is None:
                yield f"method missing: {path}"
                continue
            if have.client_streaming or have.server_streaming != method["server_streaming"]:
                yield f"{path}: streaming kind differs"
            for kind, target in (("request", have.input_type), ("response", have.output_type)):
                where = f"{path} {kind}"
                yield from _message(contract, ours, where, method[kind], target.removeprefix("."))


def _message(
    contract: dict[str, Any],
    ours: Descriptor,
    where: str,
    theirs: str,
    target: str,
    above: tuple[str, ...] = (),
) -> Iterator[str]:
    have = ours.fields(target)
    legacy = contract["legacy_fields"].get(theirs, [])
    for field in [*contract["messages"][theirs], *legacy]:
        number, shape = field["number"], wanted(field)
        found = have.get(number)
        place = f"{where}: field {number} {field['name']}"
        if found is None:
            yield f"{place} missing"
        elif str(found) != str(shape):
            yield f"{place}: want {shape}, have {found}"
        elif shape.message and theirs not in above:
            inner = f"{where}.{field['name']}"
            yield from _message(
                contract, ours, inner, shape.message, found.message, (*above, theirs)
            )


def published_file(contract: dict[str, Any]) -> descriptor_pb2.FileDescriptorProto:
    """The contract's messages as a .proto of the published clients would define them."""
    package = contract["package"]
    file = descriptor_pb2.FileDescriptorProto(
        name="published.proto", package=package, syntax="proto3"
    )
    for name, fields in contract["messages"].items():
        message = file.message_type.add(name=name.removeprefix(f"{package}."))
        for field in fields:
            made = message.field.add(name=field["name"], number=field["number"])
            made.label = REPEATED if field.get("repeated") else LABEL.Value("LABEL_OPTIONAL")
            if field["type"] == "map":
                _map_field(message, made, f"{name}.", field)
            else:
                made.type = Type.Value(f"TYPE_{field['type'].upper()}")
                if "message_type" in field:
                    made.type_name = f".{field['message_type']}"
    return file


def _map_field(
    message: descriptor_pb2.DescriptorProto,
    made: descriptor_pb2.FieldDescriptorProto,
    scope: str,
    field: dict[str, Any],
) -> None:
    camel = "".join(part.capitalize() for part in field["name"].split("_"))
    entry = message.nested_type.add(name=f"{camel}Entry")
    entry.options.map_entry = True
    for number, part in enumerate(("key", "value"), start=1):
        kind = Type.Value(f"TYPE_{field[f'{part}_type'].upper()}")
        entry.field.add(name=part, number=number, type=kind, label=LABEL.Value("LABEL_OPTIONAL"))
    made.label = REPEATED
    made.type = Type.Value("TYPE_MESSAGE")
    made.type_name = f".{scope}{entry.name}"
