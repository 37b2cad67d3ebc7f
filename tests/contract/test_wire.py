# SPDX-License-Identifier: MIT
"""Our descriptor serves every published client, and the check would notice if it did not."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from joblet_pb import joblet_pb2, joblet_pb2_grpc
from tests.contract.wire import REPEATED, Descriptor, Type, facts, published_file, violations

CONTRACT = facts()
FIRST_OF_OURS = 1001
METHODS = [(service, name) for service, methods in CONTRACT["services"].items() for name in methods]

File = descriptor_pb2.FileDescriptorProto


def our_file() -> File:
    file = File()
    joblet_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def test_the_descriptor_keeps_the_contract() -> None:
    assert list(violations(CONTRACT, Descriptor(our_file()))) == []


def test_it_is_proto3_in_the_package_that_paths_name() -> None:
    file = our_file()
    assert (file.syntax, file.package) == ("proto3", CONTRACT["package"])


@pytest.mark.parametrize(("service", "name"), METHODS)
def test_every_method_can_be_served_and_called(service: str, name: str) -> None:
    short = service.removeprefix("joblet.")
    assert callable(getattr(getattr(joblet_pb2_grpc, f"{short}Servicer"), name))
    assert f"/{service}/{name}" in Descriptor(our_file()).methods


def test_the_contract_is_whole() -> None:
    counts = {service: len(methods) for service, methods in CONTRACT["services"].items()}
    assert counts == {
        "joblet.JobService": 12,
        "joblet.NetworkService": 3,
        "joblet.VolumeService": 3,
        "joblet.MonitoringService": 2,
        "joblet.RuntimeService": 6,
    }
    assert len(CONTRACT["messages"]) == 76


def test_fields_of_ours_stay_clear_of_the_published_numbers() -> None:
    """In a message of the contract, what the contract does not have is numbered from 1001."""
    ours = Descriptor(our_file())
    for name, fields in CONTRACT["messages"].items():
        published = {field["number"] for field in fields}
        published |= {field["number"] for field in CONTRACT["legacy_fields"].get(name, [])}
        new = {number for number in ours.fields(name) if number not in published}
        assert all(number >= FIRST_OF_OURS for number in new), name


def test_fields_that_both_have_mean_the_same_in_lists_and_in_status() -> None:
    status = {f.name: f.number for f in joblet_pb2.GetJobStatusResponse.DESCRIPTOR.fields}
    listed = {f.name: f.number for f in joblet_pb2.Job.DESCRIPTOR.fields}
    ours = {name: number for name, number in listed.items() if number >= FIRST_OF_OURS}
    assert ours
    assert ours.items() <= status.items()


def test_published_names_are_kept() -> None:
    ours = our_file()
    names = {f"joblet.{m.name}": {f.number: f.name for f in m.field} for m in ours.message_type}
    for message, fields in CONTRACT["messages"].items():
        assert {f["number"]: f["name"] for f in fields}.items() <= names[message].items()


# ------------------------------------------------------------------- the check itself can fail


def message(file: File, name: str) -> descriptor_pb2.DescriptorProto:
    found: descriptor_pb2.DescriptorProto
    (found,) = (m for m in file.message_type if m.name == name)
    return found


def field(file: File, name: str, number: int) -> descriptor_pb2.FieldDescriptorProto:
    found: descriptor_pb2.FieldDescriptorProto
    (found,) = (f for f in message(file, name).field if f.number == number)
    return found


def drop_method(file: File) -> None:
    del file.service[0].method[0]


def drop_service(file: File) -> None:
    del file.service[-1]


def stop_streaming(file: File) -> None:
    method = next(m for m in file.service[0].method if m.name == "GetJobLogs")
    method.server_streaming = False


def stream_requests(file: File) -> None:
    file.service[0].method[0].client_streaming = True


def drop_field(file: File) -> None:
    fields = message(file, "RunJobRequest").field
    fields.remove(field(file, "RunJobRequest", 2))


def renumber(file: File) -> None:
    field(file, "GetJobStatusResponse", 12).number = 112


def retype(file: File) -> None:
    field(file, "DataChunk", 1).type = Type.Value("TYPE_STRING")


def repeat(file: File) -> None:
    field(file, "StopJobRequest", 1).label = REPEATED


def retype_nested(file: File) -> None:
    field(file, "ProcessInfo", 5).type = Type.Value("TYPE_FLOAT")


def retype_map_value(file: File) -> None:
    entry = next(
        m for m in message(file, "RunJobRequest").nested_type if m.name == "EnvironmentEntry"
    )
    entry.field[1].type = Type.Value("TYPE_BYTES")


def drop_legacy(file: File) -> None:
    fields = message(file, "RunJobResponse").field
    fields.remove(field(file, "RunJobResponse", 11))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_method, "method missing: /joblet.JobService/RunJob"),
        (drop_service, "method missing: /joblet.RuntimeService/ListRuntimes"),
        (stop_streaming, "/joblet.JobService/GetJobLogs: streaming kind differs"),
        (stream_requests, "/joblet.JobService/RunJob: streaming kind differs"),
        (drop_field, "/joblet.JobService/RunJob request: field 2 command missing"),
        (renumber, "/joblet.JobService/GetJobStatus response: field 12 exit_code missing"),
        (
            retype,
            "/joblet.JobService/GetJobLogs response: field 1 payload: want bytes, have string",
        ),
        (repeat, "/joblet.JobService/StopJob request: field 1 uuid: want string, have string[]"),
        (
            retype_nested,
            "/joblet.MonitoringService/GetSystemStatus response.processes.top_by_cpu: "
            "field 5 cpu_percent: want double, have float",
        ),
        (
            retype_map_value,
            "/joblet.JobService/RunJob request: field 14 environment: "
            "want map<string, string>, have map<string, bytes>",
        ),
        (drop_legacy, "/joblet.JobService/RunJob response: field 11 exitCode missing"),
    ],
)
def test_damage_is_noticed(damage: Callable[[File], None], said: str) -> None:
    file = our_file()
    damage(file)
    assert said in list(violations(CONTRACT, Descriptor(file)))


# -------------------------------------------------- published clients read what we write, and back


@pytest.fixture(scope="module")
def published() -> Callable[[str], type[Message]]:
    """Message classes as a published client has them, made from the facts in their own pool."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(published_file(CONTRACT))

    def message_class(name: str) -> type[Message]:
        descriptor = pool.FindMessageTypeByName(name)
        if hasattr(message_factory, "GetMessageClass"):
            return message_factory.GetMessageClass(descriptor)
        factory: Any = message_factory.MessageFactory(pool)  # protobuf before 4.22
        made: type[Message] = factory.GetPrototype(descriptor)
        return made

    return message_class


def fill(into: Message, depth: int = 0) -> None:
    """Sets every field to something that is not its default, messages three levels down."""
    for descriptor in into.DESCRIPTOR.fields:
        value: Any = getattr(into, descriptor.name)
        entry = descriptor.message_type
        if entry is not None and entry.GetOptions().map_entry:
            text = entry.fields_by_name["value"].cpp_type == FieldDescriptor.CPPTYPE_STRING
            value["KEY"] = "value" if text else descriptor.number
        elif entry is not None:
            if depth < 3:
                fill(value.add() if hasattr(value, "add") else value, depth + 1)
        else:
            kinds: dict[int, Any] = {
                FieldDescriptor.CPPTYPE_STRING: "text",
                FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
                FieldDescriptor.CPPTYPE_BOOL: True,
            }
            one = kinds.get(descriptor.cpp_type, descriptor.number)
            if descriptor.type == FieldDescriptor.TYPE_BYTES:
                one = b"\xff\x00bytes"
            if hasattr(value, "append"):
                value.append(one)
            else:
                setattr(into, descriptor.name, one)


@pytest.mark.parametrize("name", CONTRACT["messages"])
def test_what_we_write_a_published_client_reads(
    name: str, published: Callable[[str], type[Message]]
) -> None:
    ours = getattr(joblet_pb2, name.removeprefix("joblet."))()
    fill(ours)
    theirs = published(name)()
    theirs.ParseFromString(ours.SerializeToString())
    back = type(ours)()
    back.ParseFromString(theirs.SerializeToString())
    assert back == ours  # nothing was lost on the way, known or not
    mine, seen = MessageToDict(ours), MessageToDict(theirs)
    assert seen.keys() <= mine.keys()
    if theirs.DESCRIPTOR.fields:
        assert seen
    assert all(
        mine[key] == value for key, value in seen.items() if not isinstance(value, (dict, list))
    )
