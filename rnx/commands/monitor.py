# SPDX-License-Identifier: MIT
"""rnx monitor status: a server's host, its jobs and its log engine in numbers, in the shapes of the
published rnx; what only a server of ours tells stands behind that, and is left out for others."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from rnx.formats import plain, size, span
from rnx.options import Group, global_options
from rnx.output import one_line
from rnx.session import Session

if TYPE_CHECKING:
    from joblet_pb import joblet_pb2 as pb

LABEL_WIDTH = 14
PROCESSES = 10  # that are shown
MAIN_MOUNTS = ("/", "/boot")  # of the disks, those in the JSON's list


@click.group("monitor", cls=Group, not_served=frozenset({"gpu", "top", "watch"}))
@global_options
def command() -> None:
    """Look at a server and its host."""


@command.command("status")
@global_options
@click.pass_obj
def status(session: Session) -> None:
    """Show the server's host, jobs and log engine.

    Numbers of the host are those of the server's last look at it. Of the log engine, counts are
    since the server's start, latencies and batch sizes of the last one to two minutes.
    """
    with session.client() as client:
        answer = client.system_status()
    if session.json:
        session.env.print_json(status_json(answer))
    else:
        session.env.print(status_text(answer))


# -- text ------------------------------------------------------------------------------------------


def status_text(answer: "pb.SystemStatusResponse") -> str:
    """The sections of `rnx monitor status`, an empty line between them."""
    head = f"System Status - {plain(answer.timestamp)}\nAvailable: {_yes(answer.available)}"
    sections = [
        head,
        _section("Host Information", _host(answer)),
        _section("CPU", _cpu(answer.cpu)),
        _section("Memory", _memory(answer.memory)),
        *(
            _section(f"Disk {disk.mount_point} ({disk.device})", _disk(disk))
            for disk in answer.disks
        ),
        *(
            _section(f"Network {interface.interface}", _interface(interface))
            for interface in answer.networks
            if _is_used(interface)
        ),
        _section("Processes", _processes(answer.processes)),
        _section("Cloud Environment", _cloud(answer.cloud)),
        _section("Server", _server(answer)),
    ]
    if answer.HasField("jobs"):
        sections.append(_section("Jobs, since the server's start", _jobs(answer.jobs)))
    if answer.HasField("logs"):
        sections.append(_section("Log Engine, since the server's start", _logs(answer.logs)))
    return "\n\n".join(section for section in sections if section)


def _section(title: str, lines: Mapping[str, str]) -> str:
    """ "" without lines; what has no value is no line."""
    body = [f"  {f'{name}:':<{LABEL_WIDTH}} {plain(text)}" for name, text in lines.items() if text]
    return "\n".join([f"{plain(title)}:", *body]) if body else ""


def _host(answer: "pb.SystemStatusResponse") -> dict[str, str]:
    host = answer.host
    return {
        "Hostname": host.hostname,
        "OS": host.os,
        "Kernel": host.kernel_version,
        "Architecture": host.architecture,
        "Uptime": span(host.uptime) if host.uptime else "",
        "Boot Time": host.boot_time,
        "Node ID": host.node_id,
        "Addresses": " ".join(host.server_ips),
    }


def _cpu(cpu: "pb.CPUMetrics") -> dict[str, str]:
    if not cpu.cores:
        return {}
    return {
        "Cores": str(cpu.cores),
        "Usage": _percent(cpu.usage_percent),
        "Load Average": ", ".join(f"{load:.2f}" for load in cpu.load_average),
        "User Time": _percent(cpu.user_time),
        "System Time": _percent(cpu.system_time),
        "Idle Time": _percent(cpu.idle_time),
        "I/O Wait": _percent(cpu.io_wait_time),
        "Per Core": " ".join(_percent(usage) for usage in cpu.per_core_usage),
    }


def _memory(memory: "pb.MemoryMetrics") -> dict[str, str]:
    if not memory.total_bytes:
        return {}
    swap = f"{size(memory.swap_used)} of {size(memory.swap_total)}" if memory.swap_total else ""
    return {
        "Total": size(memory.total_bytes),
        "Used": f"{size(memory.used_bytes)} ({_percent(memory.usage_percent)})",
        "Available": size(memory.available_bytes),
        "Free": size(memory.free_bytes),
        "Cached": size(memory.cached_bytes),
        "Buffered": size(memory.buffered_bytes),
        "Swap Used": swap,
    }


def _disk(disk: "pb.DiskMetrics") -> dict[str, str]:
    return {
        "Filesystem": disk.filesystem,
        "Total": size(disk.total_bytes),
        "Used": f"{size(disk.used_bytes)} ({_percent(disk.usage_percent)})",
        "Available": size(disk.free_bytes),
        "Inodes": f"{disk.inodes_used} of {disk.inodes_total}" if disk.inodes_total else "",
    }


def _interface(interface: "pb.NetworkMetrics") -> dict[str, str]:
    return {
        "Addresses": " ".join(interface.ip_addresses),
        "Received": _traffic(
            interface.bytes_received, interface.packets_received, interface.errors_in
        ),
        "Sent": _traffic(interface.bytes_sent, interface.packets_sent, interface.errors_out),
        "Rate": f"{size(int(interface.receive_rate))}/s in,"
        f" {size(int(interface.transmit_rate))}/s out",
    }


def _traffic(count: int, packets: int, errors: int) -> str:
    return f"{size(count)} ({packets} packets, {errors} errors)"


def _processes(processes: "pb.ProcessMetrics") -> dict[str, str]:
    if not processes.total_processes:
        return {}
    return {
        "Total": str(processes.total_processes),
        "Running": str(processes.running_processes),
        "Sleeping": str(processes.sleeping_processes),
        "Stopped": str(processes.stopped_processes),
        "Zombie": str(processes.zombie_processes),
        "Threads": str(processes.total_threads),
        "Most CPU": ", ".join(
            f"{one_line(each.name)} ({each.pid}) {_percent(each.cpu_percent)}"
            for each in list(processes.top_by_cpu)[:3]
        ),
        "Most Memory": ", ".join(
            f"{one_line(each.name)} ({each.pid}) {size(each.memory_bytes)}"
            for each in list(processes.top_by_memory)[:3]
        ),
    }


def _cloud(cloud: "pb.CloudInfo") -> dict[str, str]:
    return {
        "Provider": cloud.provider,
        "Region": cloud.region,
        "Zone": cloud.zone,
        "Instance ID": cloud.instance_id,
        "Instance Type": cloud.instance_type,
        "Hypervisor": cloud.hypervisor_type,
    }


def _server(answer: "pb.SystemStatusResponse") -> dict[str, str]:
    lines = {"Version": answer.server_version.version}
    if answer.HasField("server"):
        lines["Memory"] = size(answer.server.memory_bytes)
        lines["CPU"] = f"{_percent(answer.server.cpu_percent)} of a core"
    return lines


def _jobs(jobs: "pb.JobCounts") -> dict[str, str]:
    took = jobs.average_duration_ms
    return {
        "Running now": str(jobs.running),
        "Created": str(jobs.created),
        "Completed": str(jobs.completed),
        "Failed": str(jobs.failed),
        "Stopped": str(jobs.stopped),
        "Took": f"{span(took / 1000)} on average" if took else "",
    }


def _logs(logs: "pb.LogEngine") -> dict[str, str]:
    waiting = ""
    if logs.queue_limit_bytes:
        waiting = f"{size(logs.queue_bytes)} of {size(logs.queue_limit_bytes)}"
        waiting += f" ({logs.queue_chunks} chunks)"
    gaps = (
        f"{kind} {count}" + (f" ({size(logs.gap_bytes[kind])})" if kind in logs.gap_bytes else "")
        for kind, count in sorted(logs.gaps.items())
    )
    followers = str(logs.followers)
    if logs.follower_lag_bytes:
        followers += f", the last one {size(logs.follower_lag_bytes)} behind"
    if logs.followers_removed:
        followers += f"; {logs.followers_removed} removed for having stalled"
    return {
        "Read": f"{size(logs.bytes_in)} in {logs.chunks_in} chunks",
        "Waiting": waiting,
        "Written": _written(logs),
        "Batch Size": _spread(logs.batch_size, "{:.0f} chunks"),
        "Write Latency": _spread(logs.write_us, "{:.2f} ms", 1000),
        "Overflow": ", ".join(f"{name} {count}" for name, count in sorted(logs.overflow.items())),
        "Gaps": ", ".join(gaps) or "none",
        "Followers": followers,
        "Disk Refused": f"{logs.pauses} times" if logs.pauses else "",
        "Open Logs": str(logs.logs_open),
    }


def _written(logs: "pb.LogEngine") -> str:
    batches = f"{logs.batches} batches" if logs.batches else ""
    return f"{size(logs.bytes_out)} in {batches}" if logs.bytes_out and batches else batches


def _spread(values: "pb.Distribution", form: str, divisor: int = 1) -> str:
    if not values.most:
        return ""
    p50, p99, most = (form.format(v / divisor) for v in (values.p50, values.p99, values.most))
    return f"p50 {p50}, p99 {p99}, most {most}"


def _percent(value: float) -> str:
    return f"{value:.1f}%"


def _yes(value: object) -> str:
    return "true" if value else "false"


# -- JSON ------------------------------------------------------------------------------------------


def status_json(answer: "pb.SystemStatusResponse") -> dict[str, Any]:
    """The published keys, always; those of ours where the server has the numbers."""
    shown: dict[str, Any] = {
        "hostInfo": _host_json(answer),
        "cpuInfo": _cpu_json(answer.cpu),
        "memoryInfo": _memory_json(answer.memory),
        "disksInfo": _disks_json(answer.disks),
        "networkInfo": _networks_json(answer.networks),
        "processesInfo": _processes_json(answer.processes),
    }
    if answer.HasField("jobs"):
        shown["serverInfo"] = {
            "timestamp": answer.timestamp,
            "available": answer.available,
            "version": answer.server_version.version,
            "memoryBytes": answer.server.memory_bytes,
            "cpuPercent": answer.server.cpu_percent,
        }
        shown["jobsInfo"] = numbers(answer.jobs)
    if answer.HasField("logs"):
        shown["logsInfo"] = numbers(answer.logs)
    return shown


def _host_json(answer: "pb.SystemStatusResponse") -> dict[str, Any]:
    host, cloud = answer.host, answer.cloud
    optional = {
        "nodeId": host.node_id,
        "serverIPs": list(host.server_ips),
        "macAddresses": list(host.mac_addresses),
    }
    return {
        "hostname": host.hostname,
        "platform": host.os,
        "arch": host.architecture,
        "release": host.kernel_version,
        "uptime": host.uptime,
        "cloudProvider": cloud.provider,
        "instanceType": cloud.instance_type,
        "region": cloud.region,
        **{name: value for name, value in optional.items() if value},
    }


def _cpu_json(cpu: "pb.CPUMetrics") -> dict[str, Any]:
    return {
        "cores": cpu.cores,
        "usage": cpu.usage_percent / 100,  # published so, beside percents everywhere else
        "loadAverage": list(cpu.load_average),
        "perCoreUsage": list(cpu.per_core_usage),
    }


def _memory_json(memory: "pb.MemoryMetrics") -> dict[str, Any]:
    swap = 100 * memory.swap_used / memory.swap_total if memory.swap_total else 0.0
    return {
        "total": memory.total_bytes,
        "used": memory.used_bytes,
        "available": memory.available_bytes,
        "percent": memory.usage_percent,
        "buffers": memory.buffered_bytes,
        "cached": memory.cached_bytes,
        "swap": {"total": memory.swap_total, "used": memory.swap_used, "percent": swap},
    }


def _disks_json(disks: Iterable["pb.DiskMetrics"]) -> dict[str, Any]:
    """All disks are in the sums, each once; the list has the main ones."""
    each_once = {disk.device: disk for disk in reversed(list(disks))}.values()
    return {
        "disks": [
            {
                "name": disk.device,
                "mountpoint": disk.mount_point,
                "filesystem": disk.filesystem,
                "size": disk.total_bytes,
                "used": disk.used_bytes,
                "available": disk.free_bytes,
                "percent": disk.usage_percent,
            }
            for disk in disks
            if disk.mount_point in MAIN_MOUNTS
        ],
        "totalSpace": sum(disk.total_bytes for disk in each_once),
        "usedSpace": sum(disk.used_bytes for disk in each_once),
    }


def _networks_json(networks: Iterable["pb.NetworkMetrics"]) -> dict[str, Any]:
    """All interfaces are in the sums; the list has those with traffic."""
    return {
        "interfaces": [
            {
                "name": one.interface,
                "type": _type(one.interface),
                "status": "up",
                "ipAddresses": list(one.ip_addresses),
                **({"macAddress": one.mac_address} if one.mac_address else {}),
                "rxBytes": one.bytes_received,
                "txBytes": one.bytes_sent,
                "rxPackets": one.packets_received,
                "txPackets": one.packets_sent,
                "rxErrors": one.errors_in,
                "txErrors": one.errors_out,
            }
            for one in networks
            if _is_used(one)
        ],
        "totalRxBytes": sum(one.bytes_received for one in networks),
        "totalTxBytes": sum(one.bytes_sent for one in networks),
    }


def _is_used(interface: "pb.NetworkMetrics") -> bool:
    return bool(interface.bytes_received or interface.bytes_sent)


def _type(interface: str) -> str:
    if interface == "lo":
        return "loopback"
    return "wireless" if interface.startswith("wl") else "ethernet"


def _processes_json(processes: "pb.ProcessMetrics") -> dict[str, Any]:
    return {
        "processes": [
            {
                "pid": process.pid,
                "name": process.name,
                "command": process.command,
                "cpu": process.cpu_percent,
                "memory": process.memory_percent,
                "memoryBytes": process.memory_bytes,
                "status": process.status,
                "startTime": process.start_time,
            }
            for process in list(processes.top_by_cpu)[:PROCESSES]
        ],
        "totalProcesses": processes.total_processes,
    }


def numbers(message: Any) -> dict[str, Any]:
    """Every field of a message of numbers, in the published spelling of keys."""
    shown: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if hasattr(value, "DESCRIPTOR"):
            value = numbers(value)
        elif hasattr(value, "items"):
            value = dict(value)
        first, *rest = field.name.split("_")
        shown[first + "".join(map(str.capitalize, rest))] = value
    return shown
