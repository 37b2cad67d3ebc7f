#!/bin/sh
# SPDX-License-Identifier: MIT
# copy-packages.sh TARGET PACKAGE...: the Python files of packages, without byte code, as 0644 and 0755.
set -eu
target=$1
shift
for package in "$@"; do
    name=$(basename "$package")
    (cd "$package" && find . -name __pycache__ -prune -o -type f \
        \( -name '*.py' -o -name '*.pyi' -o -name py.typed \) -print) | while read -r file; do
        install -D -m 644 "$package/$file" "$target/$name/$file"
    done
done
