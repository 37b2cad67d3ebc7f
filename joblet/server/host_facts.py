# SPDX-License-Identifier: MIT
"""What a host is, and does not change while it runs: system, kernel, hardware, whose cloud.

All of it comes from files. Nothing asks a cloud's metadata service: a server that talks to an
address of the link unasked is no good guest, and what the firmware says is enough to know the
provider. So region, zone and the instance's id stay empty.
"""

import contextlib
import dataclasses
import os
import shlex
from pathlib import Path
from typing import Final

# As other Joblet servers write it, which are written in Go.
ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}

# Words of the firmware (DMI), whose cloud it is.
CLOUDS: Final = (
    ("Amazon EC2", "aws"),
    ("Google Compute Engine", "gcp"),
    ("7783-7084-3265-9085-8269-3286-77", "azure"),  # the chassis' asset tag of every one there
    ("DigitalOcean", "digitalocean"),
    ("Hetzner", "hetzner"),
    ("OracleCloud.com", "oracle"),
    ("Alibaba Cloud", "alibaba"),
    ("OpenStack", "openstack"),
)
HYPERVISORS: Final = (
    ("VMware", "vmware"),
    ("VirtualBox", "virtualbox"),
    ("Microsoft Corporation Virtual Machine", "hyperv"),
    ("Xen", "xen"),
    ("QEMU", "kvm"),
    ("KVM", "kvm"),
    ("Amazon EC2", "kvm"),
    ("Google Compute Engine", "kvm"),
)
DMI_FILES: Final = ("sys_vendor", "product_name", "chassis_asset_tag", "bios_vendor")


@dataclasses.dataclass(frozen=True, slots=True)
class Cloud:
    """All "" on a machine of one's own."""

    provider: str = ""
    instance_type: str = ""
    hypervisor: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    system: str  # "Debian GNU/Linux 12 (bookworm)"
    distribution: str  # "debian"
    family: str  # what it is made from: "debian"
    version: str  # "12"
    kernel: str
    machine: str  # "x86_64"
    architecture: str  # "amd64"
    cloud: Cloud


def gather(root: Path = Path("/")) -> Facts:
    """Blocking. Raises nothing: what cannot be read is ""."""
    release = os_release(_text(root / "etc/os-release") or _text(root / "usr/lib/os-release"))
    kernel = os.uname()
    name = release.get("ID", "")
    dmi = root / "sys/class/dmi/id"
    return Facts(
        system=release.get("PRETTY_NAME") or kernel.sysname,
        distribution=name,
        family=(release.get("ID_LIKE") or name).partition(" ")[0],
        version=release.get("VERSION_ID", ""),
        kernel=kernel.release,
        machine=kernel.machine,
        architecture=ARCHITECTURES.get(kernel.machine, kernel.machine),
        cloud=cloud({file: _text(dmi / file).strip() for file in DMI_FILES}),
    )


def os_release(text: str) -> dict[str, str]:
    """See os-release(5): assignments as a shell reads them; lines that are none are left out."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith("#"):
            continue
        with contextlib.suppress(ValueError):
            found[name] = "".join(shlex.split(value))
    return found


def cloud(dmi: dict[str, str]) -> Cloud:
    """From the firmware's words, by file of /sys/class/dmi/id."""
    words = " ".join(dmi.get(file, "") for file in DMI_FILES)
    provider = next((name for word, name in CLOUDS if word in words), "")
    return Cloud(
        provider=provider,
        # there the product is named after the type; elsewhere the firmware does not know it
        instance_type=dmi.get("product_name", "") if provider == "aws" else "",
        hypervisor=next((name for word, name in HYPERVISORS if word in words), ""),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
