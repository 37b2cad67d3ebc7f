# SPDX-License-Identifier: MIT
"""Commands against a real server: what they send, print and exit with."""

import json
from pathlib import Path

import grpc
import pytest

from joblet_pb import joblet_pb2 as pb
from rnx import __version__, config
from rnx.commands.list import job_json
from rnx.output import Environment
from tests.unit.rnx.conftest import Rnx
from tests.unit.rnx.scripted import JOB, Script, broken_at, plain

pytestmark = pytest.mark.usefixtures("config_file")

EVERY_BYTE = bytes(range(256)) * 3


def ended(**fields: object) -> pb.GetJobStatusResponse:
    """A job that exited with 0, unless said otherwise."""
    values = {"uuid": JOB, "status": "COMPLETED", "reason": "exited", **fields}
    return pb.GetJobStatusResponse(**values)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- run


def test_run_sends_what_was_asked(rnx: Rnx, script: Script) -> None:
    result = rnx(
        *("job", "run", "--name=n", "-e", "A=1", "--env=B=2=3", "-s", "S=x", "--work-dir", "/tmp"),
        *("--max-cpu=50", "--max-memory=1G", "--max-iobps=10M", "--cpu-cores=0-1"),
        *("--max-tasks", "9", "--timeout=1h", "--network=host", "--merge"),
        "--log-driver=journald",
        *("--overflow=sample", "--on-full=drop"),
        *("sh", "-c", "echo $A", "--json", "--follow", "--"),
    )
    assert (result.code, result.err) == (0, "")
    assert script.requests == [
        pb.RunJobRequest(
            command="sh",
            args=["-c", "echo $A", "--json", "--follow", "--"],
            name="n",
            environment={"A": "1", "B": "2=3"},
            secret_environment={"S": "x"},
            work_dir="/tmp",
            max_cpu=50,
            max_memory=1024,
            max_io_bps=10 * 1024 * 1024,
            cpu_cores="0-1",
            max_tasks=9,
            timeout="1h",
            network="host",
            merge=True,
            log_driver="journald",
            overflow_strategy="sample",
            on_full="drop",
        )
    ]


@pytest.mark.parametrize("words", [("run",), ("job", "run")])
def test_run_prints_the_published_text(rnx: Rnx, words: tuple[str, ...]) -> None:
    result = rnx(*words, "-e", "A=1", "-s", "B=2", "sh", "-c", "echo ID: Status:")
    assert result.text.splitlines() == [
        "Job is running:",
        f"ID: {JOB}",
        "Command: sh",
        "Status: RUNNING",
        "StartTime: 2025-11-24T15:04:05Z",
        "Environment: 1 variables set",
        "Secret Environment: 1 variables set",
    ]


def test_the_id_stands_on_one_line_whatever_the_command_is_called(rnx: Rnx) -> None:
    result = rnx("run", "/x/ID:y", "ID: z")
    assert [line for line in result.text.splitlines() if "ID:" in line] == [f"ID: {JOB}"]


def test_run_json_has_the_published_keys_and_their_documented_alias(rnx: Rnx) -> None:
    result = rnx("--json", "run", "-e", "A=1", "echo", "hi")
    assert result.json == {
        "job_uuid": JOB,
        "id": JOB,
        "command": "sh",
        "args": ["hi"],
        "status": "RUNNING",
        "start_time": "2025-11-24T15:04:05Z",
        "env_vars": 1,
    }


def test_run_warns_of_names_that_the_job_has_anyway_and_keeps_json_clean(rnx: Rnx) -> None:
    result = rnx("run", "--json", "-e", "PATH=/x", "-s", "JOBLET_A=1", "true")
    assert result.json["job_uuid"] == JOB
    assert result.err.count("Warning:") == 2


def test_a_refused_job_is_told_in_the_servers_words(rnx: Rnx, script: Script) -> None:
    script.refuse = (
        grpc.StatusCode.INVALID_ARGUMENT,
        "cannot run frob: no such command; give its path or upload it",
    )
    plain_run, following = rnx("run", "frob"), rnx("run", "--follow", "frob")
    expected = "Error: cannot run frob: no such command; give its path or upload it\n"
    assert (plain_run.code, plain_run.out, plain_run.err) == (1, b"", expected)
    assert (following.code, following.out, following.err) == (125, b"", expected)


# ---------------------------------------------------------------------------------- follow and wait


def test_follow_shows_output_alone_and_exits_as_the_job(rnx: Rnx, script: Script) -> None:
    script.plays = [plain(EVERY_BYTE)]
    script.statuses = [
        ended(status="RUNNING", reason=""),
        ended(status="FAILED", exit_code=3),
    ]
    result = rnx("run", "--follow", "sh", "-c", "exit 3")
    assert (result.code, result.out) == (3, EVERY_BYTE)
    assert result.err == f"rnx: job {JOB}\n"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ({}, 0, ""),
        ({"status": "FAILED", "exit_code": 1}, 1, ""),
        ({"status": "FAILED", "exit_code": 255}, 255, ""),
        (
            {"status": "FAILED", "reason": "signalled", "exit_code": -1, "signal": 9},
            137,
            "signalled",
        ),
        ({"status": "FAILED", "reason": "oom", "exit_code": -1, "signal": 9}, 137, "oom"),
        ({"status": "FAILED", "reason": "timeout", "exit_code": -1}, 124, "timeout"),
        (
            {"status": "STOPPED", "reason": "stopped", "exit_code": -1, "stopped_by": "ann"},
            143,
            "ann",
        ),
        ({"status": "STOPPED", "reason": "unit-stopped", "exit_code": -1}, 143, "unit-stopped"),
        ({"status": "FAILED", "reason": "launch-failed", "exit_code": -1}, 125, "launch-failed"),
        ({"status": "FAILED", "reason": "lost", "exit_code": -1}, 125, "lost"),
    ],
)
@pytest.mark.parametrize("flag", ["--follow", "--wait"])
def test_exit_codes(
    rnx: Rnx, script: Script, flag: str, end: dict[str, object], code: int, said: str
) -> None:
    script.plays = [plain(b"")]
    script.statuses = [ended(**end)]
    result = rnx("run", flag, "true")
    assert result.code == code
    assert said in result.err


def test_wait_prints_what_run_prints_and_asks_until_the_end(rnx: Rnx, script: Script) -> None:
    running = ended(status="RUNNING", reason="")
    script.statuses = [running, running, ended(status="FAILED", exit_code=4)]
    result = rnx("run", "--wait", "--json", "true")
    assert result.code == 4
    assert result.json["job_uuid"] == JOB
    assert len(script.of(pb.GetJobStatusRequest)) == 3


def test_split_sends_stderr_to_stderr(rnx: Rnx, script: Script) -> None:
    def play(*_: object) -> list[pb.DataChunk]:
        return [
            pb.DataChunk(payload=b"out\n", offset_end=4, stream=1),
            pb.DataChunk(payload=b"err\n", offset_end=8, stream=2),
            pb.DataChunk(offset_end=8, end=True),
        ]

    script.plays, script.statuses = [play], [ended()]  # type: ignore[list-item]
    together, apart = rnx("run", "-f", "x"), rnx("run", "-f", "--split", "x")
    assert together.out == b"out\nerr\n"
    assert (apart.out, apart.err) == (b"out\n", f"rnx: job {JOB}\nerr\n")


def test_follow_json_has_nothing_but_chunks_on_stdout(rnx: Rnx, script: Script) -> None:
    script.plays, script.statuses = [plain(b"one\ntwo\n", 4)], [ended()]
    result = rnx("run", "--follow", "--json", "x")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["data"] for line in lines] == ["one\n", "two\n"]


# --------------------------------------------------------------------------------------------- log


def test_log_is_the_jobs_bytes(rnx: Rnx, script: Script) -> None:
    script.plays, script.statuses = [plain(EVERY_BYTE)], [ended()]
    result = rnx("job", "log", JOB[:8])
    assert (result.code, result.out, result.err) == (0, EVERY_BYTE, "")
    assert script.of(pb.GetJobStatusRequest)[0].uuid == JOB[:8]
    assert script.of(pb.GetJobLogsRequest) == [pb.GetJobLogsRequest(uuid=JOB)]


def test_log_options_reach_the_server(rnx: Rnx, script: Script) -> None:
    script.plays, script.statuses = [plain(b"0123456789")], [ended()]
    result = rnx("log", "--no-follow", "--from-offset", "4", JOB)
    assert result.out == b"456789"
    assert script.of(pb.GetJobLogsRequest) == [
        pb.GetJobLogsRequest(uuid=JOB, from_offset=4, no_follow=True)
    ]


def test_log_json_survives_what_is_not_text(rnx: Rnx, script: Script) -> None:
    def play(*_: object) -> list[pb.DataChunk]:
        return [
            pb.DataChunk(payload="grün\n".encode(), offset_end=6, stream=1, time_us=1_700_000_000),
            pb.DataChunk(payload=b"\xff\x00", offset_end=8, stream=2),
            pb.DataChunk(offset_end=20, gap=pb.Gap(kind="dropped", bytes=12)),
            pb.DataChunk(),  # a sign of life is no chunk
            pb.DataChunk(offset_end=20, end=True),
        ]

    script.plays, script.statuses = [play], [ended()]  # type: ignore[list-item]
    result = rnx("log", "--json", JOB)
    assert [json.loads(line) for line in result.out.splitlines()] == [
        {"data": "grün\n", "timestamp": "1970-01-01T00:28:20Z", "offset_end": 6, "stream": 1},
        {
            "data": "\ufffd\x00",
            "timestamp": "2025-11-24T15:05:05Z",
            "data_base64": "/wA=",
            "offset_end": 8,
            "stream": 2,
        },
        {
            "data": "",
            "timestamp": "2025-11-24T15:05:05Z",
            "offset_end": 20,
            "gap": {"kind": "dropped", "bytes": 12},
        },
    ]
    assert result.err == "rnx: 12 bytes of the log are missing here (dropped)\n"


def test_a_gap_is_one_plain_line_on_stderr(rnx: Rnx, script: Script) -> None:
    def play(*_: object) -> list[pb.DataChunk]:
        return [
            pb.DataChunk(payload=b"a", offset_end=1),
            pb.DataChunk(offset_end=1 << 40, gap=pb.Gap(kind="lost", bytes=-1)),
            pb.DataChunk(payload=b"b", offset_end=(1 << 40) + 1),
            pb.DataChunk(offset_end=(1 << 40) + 1, end=True),
        ]

    script.plays, script.statuses = [play], [ended()]  # type: ignore[list-item]
    result = rnx("log", JOB)
    assert result.out == b"ab"
    assert result.err == "rnx: an unknown number of bytes of the log are missing here (lost)\n"


def test_log_goes_on_where_a_connection_broke(rnx: Rnx, script: Script) -> None:
    data = bytes(range(256))
    play = plain(data, 10)
    script.plays = [broken_at(play, 5), broken_at(play, 0), broken_at(play, 7), play]
    script.statuses = [ended()]
    result = rnx("log", JOB)
    assert (result.code, result.out) == (0, data)
    asked = [request.from_offset for request in script.of(pb.GetJobLogsRequest)]
    assert asked == [0, 50, 50, 120]
    assert result.err.count("trying again") == 2  # once a break, not once a try


def test_log_of_a_published_server_is_not_doubled(rnx: Rnx, script: Script) -> None:
    """It knows no offsets: it sends all again, and says no end."""

    def play(*_: object) -> list[pb.DataChunk]:
        return [pb.DataChunk(payload=bytes([at] * 3)) for at in range(20)]

    whole = b"".join(chunk.payload for chunk in play())
    script.plays = [broken_at(play, 6), play]  # type: ignore[arg-type, list-item]
    script.statuses = [ended()]
    assert rnx("log", JOB).out == whole


def test_log_of_an_unknown_job_fails_at_once(rnx: Rnx, script: Script) -> None:
    script.refuse = (grpc.StatusCode.NOT_FOUND, "cannot show job x: job not found: x")
    result = rnx("log", "x")
    assert (result.code, result.out) == (1, b"")
    assert result.err == "Error: cannot show job x: job not found: x\n"


# ------------------------------------------------------------------------------ list, status, stop


def test_list_is_the_published_table(rnx: Rnx, script: Script) -> None:
    script.jobs = [
        pb.Job(
            uuid=JOB,
            name="build",
            node_id="node-1",
            status="RUNNING",
            start_time="2025-11-24T15:04:05+02:00",
            command="sh",
            args=["-c", "echo one\necho two"],
        ),
        pb.Job(
            uuid="1f5e7a52-9b57-4d07-8d5e-6a1f3c2b4d10",
            status="SCHEDULED",
            start_time="2025-11-24T15:04:05Z",
            scheduled_time="2025-11-25T01:02:03Z",
            command="x" * 100,
        ),
    ]
    result = rnx("job", "list")
    assert result.text.splitlines() == [
        "ID                                     NAME    NODE ID   STATUS      START TIME"
        "          COMMAND",
        "-------------------------------------- ------- --------- ----------- -------------------"
        " -------",
        f"{JOB}   build   node-1    RUNNING     2025-11-24 15:04:05 sh -c echo one...",
        "1f5e7a52-9b57-4d07-8d5e-6a1f3c2b4d10   -       -         SCHEDULED   2025-11-25 01:02:03 "
        + "x" * 77
        + "...",
    ]


def test_list_without_jobs(rnx: Rnx) -> None:
    assert rnx("list").text == "No jobs found\n"
    assert rnx("list", "--json").text == "[]\n"


def test_list_json_has_the_published_keys(rnx: Rnx, script: Script) -> None:
    script.jobs = [
        pb.Job(uuid=JOB, status="RUNNING", start_time="2025-11-24T15:04:05Z", command="true"),
        pb.Job(
            uuid=JOB,
            name="n",
            node_id="i",
            status="FAILED",
            start_time="a",
            end_time="b",
            command="c",
            args=["d"],
            exit_code=2,
            max_cpu=3,
            max_memory=4,
            max_io_bps=5,
            cpu_cores="6",
            scheduled_time="e",
            reason="exited",
        ),
    ]
    small, full = rnx("list", "--json").json
    assert small == {
        "id": JOB,
        "uuid": JOB,
        "status": "RUNNING",
        "start_time": "2025-11-24T15:04:05Z",
        "command": "true",
    }
    assert full == {
        "id": JOB,
        "uuid": JOB,
        "name": "n",
        "node_id": "i",
        "status": "FAILED",
        "start_time": "a",
        "end_time": "b",
        "command": "c",
        "args": ["d"],
        "exit_code": 2,
        "max_cpu": 3,
        "max_memory": 4,
        "max_iobps": 5,
        "cpu_cores": "6",
        "scheduled_time": "e",
        "reason": "exited",
    }


def test_names_of_others_do_not_reach_the_terminal_raw(rnx: Rnx, script: Script) -> None:
    evil = "\x1b]0;owned\x07\x9b31m"
    script.jobs = [pb.Job(uuid=JOB, name=evil, status="RUNNING", command=evil)]
    script.statuses = [ended(name=evil, command=evil, reason_text=evil, network=evil)]
    script.run = pb.RunJobResponse(job_uuid=JOB, status="RUNNING", start_time=evil)
    for result in (rnx("list"), rnx("status", JOB), rnx("run", evil)):
        assert not set(result.text) & {"\x1b", "\x07", "\x9b"}
    script.refuse = (grpc.StatusCode.NOT_FOUND, f"cannot show {evil}")
    assert not set(rnx("status", "x").err) & {"\x1b", "\x07", "\x9b"}


def test_update(rnx: Rnx, script: Script) -> None:
    result = rnx("job", "update", "0f5e", "--max-cpu", "200%", "--max-memory", "2G",
                 "--memory-high=1G", "--max-swap=0", "--cpu-cores=all", "--max-tasks=0",
                 "--cpu-weight=0", "--max-iobps=4G", "--timeout", "+30m")  # fmt: skip
    assert result.text == (
        f"Job updated successfully:\nID: {JOB}\nEffective Limits:\n  CPU: 200%\n  Timeout: 1h30m\n"
    )
    [request] = script.of(pb.UpdateJobRequest)
    assert request == pb.UpdateJobRequest(
        uuid="0f5e", max_cpu=200, max_memory_bytes=2 << 30, memory_high_bytes=1 << 30,
        max_swap_bytes=0, cpu_cores="", max_tasks=0, cpu_weight=0, max_io_bps=4 << 30,
        timeout="+30m",
    )  # fmt: skip
    assert not request.HasField("io_weight")  # what is not named stays
    shown = rnx("update", "0f5e", "--timeout=90", "--json").json
    assert (shown["uuid"], shown["timeout"]) == (JOB, "1h30m")
    assert shown["effectiveLimits"]["maxCPU"] == 200
    assert script.of(pb.UpdateJobRequest)[1].timeout == "90s"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say what to change"),
        (("--max-cpu=much",), "cannot use --max-cpu 'much': write percent"),
        (("--max-memory=12Q",), "cannot use --max-memory '12Q': 'Q' is no unit"),
        (("--timeout=+soon",), "as in 2h, or +30m"),
        (("--io-weight=10001",), "1 to 10000"),
    ],
)
def test_an_update_that_is_none(
    rnx: Rnx, script: Script, words: tuple[str, ...], said: str
) -> None:
    result = rnx("job", "update", "0f5e", *words)
    assert (result.code, script.requests) == (1, [])
    assert said in result.err


def test_stop(rnx: Rnx, script: Script) -> None:
    result = rnx("job", "stop", "0f5e")
    assert result.text == f"Job stopped successfully:\nID: {JOB}\nStatus: STOPPED\n"
    assert script.of(pb.StopJobRequest)[0].uuid == "0f5e"
    assert rnx("stop", "0f5e", "--json").json == {
        "uuid": JOB,
        "status": "STOPPED",
        "endTime": "2025-11-24T15:04:09Z",
        "exitCode": -1,
        "end_time": "2025-11-24T15:04:09Z",
        "exit_code": -1,
    }


def test_delete(rnx: Rnx, script: Script) -> None:
    result = rnx("job", "delete", "0f5e")
    assert (result.code, result.err) == (0, "")
    assert result.text == (
        f"Job deleted successfully:\nID: {JOB}\nMessage: Job deleted successfully\n"
    )
    assert script.of(pb.DeleteJobRequest)[0].uuid == "0f5e"
    assert rnx("delete", "0f5e", "--json").json == {
        "uuid": JOB,
        "success": True,
        "message": "Job deleted successfully",
    }


def test_a_job_that_is_not_deleted_is_a_failure(rnx: Rnx, script: Script) -> None:
    script.delete = pb.DeleteJobResponse(uuid=JOB, message="it is\x1b busy")
    result = rnx("delete", JOB)
    assert (result.code, result.out) == (1, b"")
    assert result.err == f"Error: cannot delete job {JOB}: it is\\x1b busy\n"
    text = f"cannot delete job {JOB}: it has not ended (status: RUNNING); stop the job first"
    script.refuse = (grpc.StatusCode.FAILED_PRECONDITION, text)
    result = rnx("delete", "--json", JOB)
    assert (result.code, result.out, result.err) == (1, b"", f"Error: {text}\n")


def test_delete_all(rnx: Rnx, script: Script) -> None:
    result = rnx("job", "delete-all")
    assert result.code == 0
    assert result.text.splitlines() == [
        "Jobs deleted successfully:",
        "Deleted: 2",
        "Skipped: 1",
        "Message: Successfully deleted 2 jobs, skipped 1 running/scheduled jobs",
    ]
    assert rnx("delete-all", "--json").json == {
        "success": True,
        "message": "Successfully deleted 2 jobs, skipped 1 running/scheduled jobs",
        "deleted_count": 2,
        "skipped_count": 1,
    }
    script.delete_all = pb.DeleteAllJobsResponse(message="could not delete 1", deleted_count=4)
    some, as_json = rnx("delete-all"), rnx("--json", "delete-all")
    assert (some.code, as_json.code) == (1, 1)
    assert some.text.startswith("Not all jobs were deleted:\nDeleted: 4\n")
    assert as_json.json == {"success": False, "message": "could not delete 1", "deleted_count": 4}


def many(count: int) -> list[pb.Job]:
    return [
        pb.Job(
            uuid=f"{number:08x}-9b57-4d07-8d5e-6a1f3c2b4d10",
            status="RUNNING",
            start_time="2025-11-24T15:04:05Z",
            command=f'echo "{number}\n"',
            args=["ä"],
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("page", [0, 1, 3, 4, 50])
def test_a_list_is_fetched_page_by_page(rnx: Rnx, script: Script, page: int) -> None:
    script.jobs, script.page = many(9), page
    listed = rnx("list", "--json")
    whole = json.dumps([job_json(job) for job in script.jobs], ensure_ascii=False, indent=2)
    assert listed.text == f"{whole}\n"
    assert len(script.requests) == (-(-9 // page) if page else 1)
    head, _, *lines = rnx("list").text.splitlines()
    assert [line.split()[0] for line in lines] == [job.uuid for job in script.jobs]
    commands = {line.index("echo") for line in lines}
    assert commands == {head.index("COMMAND")}


@pytest.mark.parametrize("page", [0, 1, 3, 4, 50])
@pytest.mark.parametrize("limit", [1, 3, 5, 9, 20])
def test_the_last_jobs_alone(rnx: Rnx, script: Script, page: int, limit: int) -> None:
    script.jobs, script.page = many(9), page
    listed = rnx("list", "--json", "--limit", str(limit)).json
    assert [job["uuid"] for job in listed] == [job.uuid for job in script.jobs[-limit:]]


def test_no_pages_without_jobs(rnx: Rnx, script: Script) -> None:
    script.page = 3
    assert rnx("list").text == "No jobs found\n"
    assert rnx("list", "--json").text == rnx("list", "--json", "--limit=3").text == "[]\n"


def test_what_is_no_limit(rnx: Rnx, script: Script) -> None:
    for word in ("0", "-1", "many", "99999999999"):
        result = rnx("list", "--limit", word)
        assert (result.code, script.requests) == (1, [])
        assert "--limit" in result.err


def test_pages_without_an_end_are_not_read_for_ever(
    rnx: Rnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnx.client import Client

    def stuck(self: Client, request: pb.EmptyRequest, *_: object) -> pb.Jobs:
        return pb.Jobs(next_page_token="again")

    monkeypatch.setattr(Client, "_list", stuck)
    for words in (["list"], ["list", "--limit=5"]):
        result = rnx(*words)
        assert (result.code, result.err) == (
            1,
            "Error: cannot list jobs: the server's pages do not end\n",
        )


def test_status_word_is_coloured_on_a_terminal_only(
    rnx: Rnx, script: Script, env: Environment
) -> None:
    script.statuses = [ended()]
    assert "Status: COMPLETED\n" in rnx("status", JOB).text
    env.colour = True
    assert "Status: \x1b[32mCOMPLETED\x1b[0m\n" in rnx("status", JOB).text


# ------------------------------------------------------------------- nodes, runtimes and versions


def test_version_asks_the_server(rnx: Rnx) -> None:
    assert rnx("--version").text == f"rnx {__version__}\njoblet 1.2.3\n"
    assert rnx("version", "--json").json["joblet"] == {"version": "1.2.3"}


def test_version_works_without_a_server_or_a_configuration(
    rnx: Rnx, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.unlink()
    monkeypatch.setattr(config, "candidates", lambda *_: iter(()))  # the host may have one
    result = rnx("-v", "--json")
    assert result.code == 0
    assert set(result.json) == {"rnx"}
    published = {"version", "git_commit", "git_tag", "build_date", "go_version", "platform"}
    assert published | {"proto_commit"} <= set(result.json["rnx"])


def test_runtimes(rnx: Rnx, script: Script) -> None:
    empty = rnx("runtime", "list")
    assert (empty.code, empty.text.splitlines()[0]) == (0, "No runtimes available.")
    assert rnx("runtime", "list", "--json").text == "[]\n"
    script.runtimes = [
        pb.RuntimeInfo(name="py", language="python", version="3.11", size_bytes=3 << 20)
    ]
    assert rnx("runtime", "list").text.splitlines()[1].split() == [
        "py",
        "python",
        "3.11",
        "3",
        "MB",
    ]
    assert rnx("--json", "runtime", "list").json[0]["id"] == "py"


# ----------------------------------------------------------------------------------- global options


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "job", "list"),
        ("job", "--json", "list"),
        ("job", "list", "--json"),
        ("list", "--json"),
        ("--node", "nowhere", "list", "--json", "--node=default"),
    ],
)
def test_global_options_may_stand_anywhere(rnx: Rnx, words: tuple[str, ...]) -> None:
    assert rnx(*words).text == "[]\n"
