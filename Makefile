# SPDX-License-Identifier: MIT
# `make` lists what there is. The package build calls `make install DESTDIR=`; nothing of that needs network.

SHELL = /bin/sh
PREFIX ?= /usr
DESTDIR ?=
SUITE ?= bookworm
K ?=
JOB ?=

CACHE := $(or $(JOBLET_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME)/joblet,$(HOME)/.cache/joblet))
TOOLS := $(CACHE)/venv/bin
PYTHON := /usr/bin/python3
STUBS := build/stubs
PRIVATE := $(PREFIX)/share/joblet
SITE := $(PREFIX)/lib/python3/dist-packages
UNITS := $(PREFIX)/lib/systemd/system
CATALOG := $(PREFIX)/lib/systemd/catalog

export PYTHONPATH := $(CURDIR):$(CURDIR)/$(STUBS)

.PHONY: help demo test test-full check machine test-machine bench bench-slow deb stubs man wheel install clean

help:
	@echo 'make demo              run real jobs in a throw-away machine (JOB="command" for your own)'
	@echo 'make test              everything: linters, types, unit, contract and machine tests'
	@echo 'make test-full         the same and what takes long: before a release'
	@echo 'make check             linters, types and unit tests'
	@echo 'make machine           a shell in a booted machine with this tree in it (SUITE=trixie)'
	@echo 'make test-machine      the machine tests (K=word picks some)'
	@echo 'make bench             measurements, with peers beside us (ONLY=logs WRITE=docs/BENCHMARKS.md)'
	@echo 'make bench-slow        the same for jobs whose output goes to a slow disk'
	@echo 'make man               the man pages, in build/man'
	@echo 'make wheel             rnx for every system that has Python: dist/*.whl'
	@echo 'make deb               the Debian packages, built in a clean root (SUITE=trixie)'
	@echo 'make install DESTDIR=  what the Debian package holds'

# -- using it ------------------------------------------------------------------------------------

demo:
	@tools/demo.sh $(if $(value JOB),'$(subst ','\'',$(value JOB))')

machine:
	@tools/host-setup.sh demo
	@$(PYTHON) -m tests.machine.rig shell $(SUITE)

# -- checking it ---------------------------------------------------------------------------------

test:
	@tools/host-setup.sh test
	@$(PYTHON) tools/check.py all

test-full:
	@tools/host-setup.sh full
	@$(PYTHON) tools/check.py full

check:
	@tools/host-setup.sh test
	@$(PYTHON) tools/check.py quick

test-machine: stubs
	@tools/host-setup.sh test
	@$(PYTHON) -m tests.machine.rig build
	@$(TOOLS)/python -m pytest tests/machine $(if $(K),-k "$(K)")

bench: stubs
	@tools/host-setup.sh test
	@$(PYTHON) -m tests.bench $(if $(ONLY),--only $(ONLY)) $(if $(WRITE),--write $(WRITE))

# A disk that is slow is one of a VM: what jobs feel of it.
bench-slow: stubs
	@tools/host-setup.sh test
	@$(PYTHON) -m tests.bench --vm --no-podman --only slow $(if $(WRITE),--write $(WRITE))

# -- packaging it --------------------------------------------------------------------------------

deb:
	@tools/host-setup.sh demo
	@$(PYTHON) -m tools.deb $(SUITE)

stubs: $(STUBS)/joblet_pb/joblet_pb2.py

$(STUBS)/joblet_pb/joblet_pb2.py: proto/joblet.proto tools/stubs.py
	@$(PYTHON) tools/stubs.py $(STUBS)

# For macOS, Windows and any Linux; nothing of it needs network.
wheel:
	@tools/host-setup.sh test
	@$(TOOLS)/python tools/wheel.py dist

# No date but SOURCE_DATE_EPOCH's, which Debian's build sets.
man: stubs
	@$(PYTHON) tools/man.py build/man

# -- installing it -------------------------------------------------------------------------------
# The server is private, below share/joblet: the published SDK has a top-level package of that name.

install: stubs man
	install -d $(DESTDIR)$(PRIVATE) $(DESTDIR)$(SITE) $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITS)
	tools/copy-packages.sh $(DESTDIR)$(PRIVATE) joblet
	tools/copy-packages.sh $(DESTDIR)$(SITE) rnx $(STUBS)/joblet_pb
	install -m 755 tools/bin/joblet $(DESTDIR)$(PREFIX)/bin/joblet
	install -m 755 tools/bin/rnx $(DESTDIR)$(PREFIX)/bin/rnx
	install -m 644 -t $(DESTDIR)$(UNITS) units/*.service units/*.socket units/*.slice units/*.mount
	install -D -m 644 units/joblet.catalog $(DESTDIR)$(CATALOG)/joblet.catalog
	install -D -m 644 units/joblet-sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/joblet.conf
	install -D -m 644 units/joblet-tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/joblet.conf
	install -D -m 644 tools/completion/rnx.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/rnx
	install -D -m 644 tools/completion/_rnx $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_rnx
	install -D -m 644 tools/completion/rnx.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/rnx.fish
	for page in build/man/*; do \
		install -D -m 644 "$$page" "$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}" || exit; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
