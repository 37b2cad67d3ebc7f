# SPDX-License-Identifier: MIT
"""The events of Joblet that the journal can be asked for: `journalctl MESSAGE_ID=…`.

Each id stands for one kind of event for ever, whatever its text becomes; units/joblet.catalog says
what each means and what to do about it, which `journalctl -x` shows beside the entry. A new event:
an id here (systemd-id128 new), a paragraph there; a test holds the two together. Pure.
"""

from typing import Final

# A job's life: at most one of the first, and one of the others.
JOB_STARTED: Final = "87a196de328249ca855b26f5582f1c67"
JOB_ENDED: Final = "6b9dbfdfeec74404a8cec7cc2add5700"
JOB_LAUNCH_FAILED: Final = "198ee1047bad42f5aea64f6cc8dd984a"

JOB_NOT_ANSWERING: Final = "052c4b47da1844a99601f2b239e64f3b"  # its PID 1; systemd ends it
LIMITS_NOT_ENFORCED: Final = "398249665693426fbdd59414447bf323"
LINES_LEFT_OUT: Final = "70d9823466cf428e953b0161133be78a"  # of a job, in the journal's copy
JOBS_TAKEN_BACK: Final = "0a5edbe9026e499c97170e82026da073"
LOGS_WITHOUT_RECORD: Final = "d4eaa5efca2f4acebfebf2d1e2486ce2"
OUTPUT_EXPIRED: Final = "b1f7c3f0a5f24b6d8e0c7d9a64e2135c"  # retention removed logs, or parts

# The audit: a client changed something, or tried; it was not allowed to.
CHANGE: Final = "6b5e0d8b7d1c4a3f9a7f0f3a2f5d9c11"
CHANGE_REFUSED: Final = "413ea2fcc5f1489b8d656e65ccd5936d"

# Output comes faster than the disk takes it, and something is done about it; that is over.
OVERFLOW: Final = "6f9c8968f64847e48998b0ec7d437a49"
OVERFLOW_OVER: Final = "55b45a24d4384daeb5e1900f63367386"

INIT_MODE_AWAY: Final = "959748ea460647f7875ff9305c4239b1"
STRANGER_REFUSED: Final = "018276d561ba40e78410eff4d54e13c5"  # at init mode's socket
CERTIFICATE: Final = "c7eec9afa6284a8c8e54831f7b99884d"
