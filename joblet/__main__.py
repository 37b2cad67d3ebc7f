# SPDX-License-Identifier: MIT
"""`joblet`: one executable for both modes (JOBLET_MODE) and for what an administrator does by hand.

    joblet                 server (default) or init, as JOBLET_MODE says
    joblet cert …          certificates
    joblet --version

Each mode is imported only when it runs. Errors become exit codes here and nowhere else.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from joblet import __version__
from joblet.errors import Code, InvalidArgument, JobletError, NewerRelease

USAGE: Final = """\
usage: joblet                 run the server (or init mode: JOBLET_MODE=init)
       joblet cert COMMAND    make and show certificates; see `joblet cert --help`
       joblet --version       print the version
"""

# sysexits(3), where it has a name for it; everything else is 1
EXIT_CODES: Final[Mapping[Code, int]] = {
    Code.INVALID_ARGUMENT: 64,
    Code.UNAVAILABLE: 69,
    Code.PERMISSION_DENIED: 77,
}
EX_CONFIG: Final = 78  # joblet.service is not restarted after this one: somebody must do something


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments, environ)
    except JobletError as error:
        from joblet.config import ConfigurationError
        from joblet.systemd import failure

        failure.tell(error.text, environ)

        stays = isinstance(error, ConfigurationError | NewerRelease)
        return EX_CONFIG if stays else EXIT_CODES.get(error.code, 1)
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str], environ: Mapping[str, str]) -> int:
    match arguments:
        case ["cert", *rest]:
            from joblet.admin.cli import main as cert

            return cert(rest)
        case ["--version" | "-V"]:
            print(f"joblet {__version__}")  # noqa: T201
            return 0
        case ["--help" | "-h"]:
            print(USAGE, end="")  # noqa: T201
            return 0
        case [unknown, *_]:
            print(f"joblet: no command {unknown!r}\n{USAGE}", end="", file=sys.stderr)  # noqa: T201
            return 64
    match environ.get("JOBLET_MODE", "server"):
        case "server":
            from joblet.server.daemon import main as server

            return server(environ)
        case "init":
            # the zygote first: it keeps what this process has imported until here, and no more
            from joblet.launch.zygote import Zygote

            zygote = Zygote()
            from joblet.init.journal_process import JournalProcess

            journal = JournalProcess()
            from joblet.init.daemon import main as init

            return init(zygote, journal, environ)
        case other:
            raise InvalidArgument(
                "start", f"JOBLET_MODE is {other!r}", hint="it is server (the default) or init"
            )


if __name__ == "__main__":
    sys.exit(main())
