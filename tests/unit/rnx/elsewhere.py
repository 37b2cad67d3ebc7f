# SPDX-License-Identifier: MIT
"""rnx as it finds itself on macOS and Windows, played on Linux: what these systems do not have is
taken from rnx's modules, and only from them; the libraries below, which serve all systems, keep it.

    JOBLET_RNX_PLATFORM=win32 python -m pytest -p tests.unit.rnx.elsewhere tests/unit/rnx

rnx's imports go through `importer`: a module that is not there cannot be imported, and `os`, `sys`,
`signal` and others come without what the system lacks. Processes that the tests start get the same
through a sitecustomize. What a real system does differently in a call that it has, no play shows.
"""

import builtins
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "JOBLET_RNX_PLATFORM"
PACKAGES = ("rnx", "joblet_pb")

UNIX_MODULES = """
    _curses _posixsubprocess crypt curses fcntl grp nis posix pty pwd readline resource syslog
    termios tty
"""
LINUX_MODULES = frozenset({"dbus", "dbus_next", "ossaudiodev", "seccomp", "spwd", "systemd"})
MODULES = {"darwin": LINUX_MODULES, "win32": LINUX_MODULES.union(UNIX_MODULES.split())}

LINUX_OS = """
    copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid getresuid
    getxattr listxattr memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate removexattr
    sched_getaffinity sched_getparam sched_getscheduler sched_setaffinity sched_setparam
    sched_setscheduler setns setresgid setresuid setxattr splice unshare
    O_DIRECT O_NOATIME O_PATH O_TMPFILE
"""
UNIX_OS = """
    WCOREDUMP WEXITSTATUS WIFCONTINUED WIFEXITED WIFSIGNALED WIFSTOPPED WSTOPSIG WTERMSIG
    chown chroot confstr ctermid environb fchdir fchmod fchown fork forkpty fpathconf fstatvfs
    fwalk get_blocking getegid getenvb geteuid getgid getgrouplist getgroups getloadavg getpgid
    getpgrp getpriority getsid getuid initgroups killpg lchown lockf login_tty major makedev minor
    mkfifo mknod nice openpty pathconf posix_openpt posix_spawn posix_spawnp pread preadv ptsname
    pwrite pwritev readv register_at_fork sched_yield sendfile set_blocking setegid seteuid setgid
    setgroups setpgid setpriority setregid setreuid setsid setuid statvfs sync sysconf tcgetpgrp
    tcsetpgrp ttyname uname wait wait3 wait4 waitid writev
    O_ASYNC O_CLOEXEC O_DIRECTORY O_DSYNC O_NDELAY O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC
"""
LINUX_SIGNAL = """
    SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT sigtimedwait sigwaitinfo
"""
WINDOWS_SIGNAL = """
    SIGABRT SIGFPE SIGILL SIGINT SIGSEGV SIGTERM SIG_DFL SIG_IGN Handlers Signals
    default_int_handler getsignal raise_signal set_wakeup_fd signal strsignal valid_signals
"""

Absent = Callable[[str], bool]

ABSENT: dict[str, dict[str, Absent]] = {
    "darwin": {
        "os": frozenset(LINUX_OS.split()).__contains__,
        "signal": frozenset(LINUX_SIGNAL.split()).__contains__,
        "select": frozenset({"epoll"}).__contains__,
        "sys": frozenset({"getwindowsversion"}).__contains__,
    },
    "win32": {
        "os": frozenset([*LINUX_OS.split(), *UNIX_OS.split()]).__contains__,
        "signal": lambda name: not name.startswith("__") and name not in WINDOWS_SIGNAL.split(),
        "select": lambda name: "poll" in name.lower(),
        "socket": lambda name: name in ("AF_UNIX", "recv_fds", "send_fds", "MSG_CMSG_CLOEXEC"),
        "sys": lambda name: name in ("abiflags", "getdlopenflags", "setdlopenflags"),
        "time": lambda name: (
            name in ("tzset", "clock_gettime", "clock_settime")
            or name.startswith(("CLOCK_", "pthread_"))
        ),
    },
}
OTHER: dict[str, dict[str, dict[str, Any]]] = {
    "darwin": {"sys": {"platform": "darwin"}},
    # devnull stays: it is opened
    "win32": {
        "os": {"name": "nt", "linesep": "\r\n", "sep": "\\", "altsep": "/", "pathsep": ";"},
        "sys": {"platform": "win32"},
    },
}


class Facade(types.ModuleType):
    """A module without some of its names, and with other values for some. What is set, is set in
    the module itself."""

    def __init__(self, module: types.ModuleType, absent: Absent, other: dict[str, Any]) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _absent=absent, _other=other)

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__
        if name in inner["_other"]:
            return inner["_other"][name]
        if inner["_absent"](name):
            raise AttributeError(f"module {self.__name__!r} of this system has no {name!r}")
        return getattr(inner["_module"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_module"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__dict__["_module"], name)


def importer(platform: str) -> Callable[..., Any]:
    """What stands in for `__import__`: for modules of rnx as on this platform."""
    real = builtins.__import__
    facades = {
        name: Facade(real(name), absent, OTHER[platform].get(name, {}))
        for name, absent in ABSENT[platform].items()
    }

    def import_(
        name: str,
        globals: dict[str, Any] | None = None,  # noqa: A002  (its name in the language)
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        package = ((globals or {}).get("__package__") or "").partition(".")[0]
        if level or package not in PACKAGES:
            return real(name, globals, locals, fromlist, level)
        top = name.partition(".")[0]
        if top in MODULES[platform]:
            raise ModuleNotFoundError(f"no module named {name!r} on this system", name=name)
        module = real(name, globals, locals, fromlist, level)
        return facades.get(top, module) if top == name or not fromlist else module

    return import_


def install(platform: str) -> None:
    """From here on, in this process. rnx must not be loaded yet."""
    assert not [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
    builtins.__import__ = importer(platform)


def _install_in_children(platform: str) -> None:
    """They take their search path from sys.path, and begin with the first sitecustomize there."""
    place = tempfile.TemporaryDirectory(prefix="joblet-elsewhere-")
    code = f"from tests.unit.rnx import elsewhere\nelsewhere.install({platform!r})\n"
    (Path(place.name) / "sitecustomize.py").write_text(code)
    sys.path.insert(0, place.name)
    _places.append(place)


_places: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def pytest_load_initial_conftests() -> None:
    """Before rnx's conftest.py imports rnx."""
    platform = os.environ[VARIABLE]
    install(platform)
    _install_in_children(platform)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"rnx as on {os.environ[VARIABLE]}")
