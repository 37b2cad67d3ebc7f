# SPDX-License-Identifier: MIT
"""The configuration of both modes: every setting, its default and what it may be.

    kinds.py    what a value may be, and how to say so
    reading.py  files and YAML to frozen data
    server.py   joblet-config.yml
    policy.py   init.yml, which init mode alone reads

Frozen data. Durations are microseconds and written as Go writes them ("1m30s"), sizes are bytes.
Must not import grpc or cryptography, and yaml only when there is a file to parse.
"""

from joblet.config.kinds import (
    DEFAULT_MAX_TASKS,
    MAX_JOBS,
    MAX_TASKS,
    MIN_CPU_PERCENT,
    MIN_MEMORY_MIB,
    MIN_TASKS,
    PROFILES,
    RLIMITS,
    UID_FIRST,
    UID_LAST,
    UIDS_PER_JOB,
    duration_us,
)
from joblet.config.policy import INIT_POLICY, PROPERTIES, InitPolicy, load_policy, parse_policy
from joblet.config.reading import ConfigurationError
from joblet.config.server import (
    ON_FULL,
    OVERFLOW_STRATEGIES,
    SEARCH,
    Loaded,
    LogPersistence,
    ServerConfig,
    find,
    load,
    node_id,
    parse,
    read_machine_id,
    require_certificates,
)

__all__ = [
    "DEFAULT_MAX_TASKS",
    "INIT_POLICY",
    "MAX_JOBS",
    "MAX_TASKS",
    "MIN_CPU_PERCENT",
    "MIN_MEMORY_MIB",
    "MIN_TASKS",
    "ON_FULL",
    "OVERFLOW_STRATEGIES",
    "PROFILES",
    "PROPERTIES",
    "RLIMITS",
    "SEARCH",
    "UIDS_PER_JOB",
    "UID_FIRST",
    "UID_LAST",
    "ConfigurationError",
    "InitPolicy",
    "Loaded",
    "LogPersistence",
    "ServerConfig",
    "duration_us",
    "find",
    "load",
    "load_policy",
    "node_id",
    "parse",
    "parse_policy",
    "read_machine_id",
    "require_certificates",
]
