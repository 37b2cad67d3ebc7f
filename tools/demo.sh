#!/bin/sh
# SPDX-License-Identifier: MIT
# demo.sh [COMMAND]: what `make demo` runs. With a command it exits with the command's code, which
# make itself cannot: make exits with 2 whatever failed, and prints the code.
set -eu
cd "$(dirname "$0")/.."
tools/host-setup.sh demo
exec /usr/bin/python3 -m tests.machine.demo ${1:+--job "$1"}
