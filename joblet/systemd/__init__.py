# SPDX-License-Identifier: MIT
"""How Joblet talks to systemd: the bus, its manager, unit properties. Both modes use it.

`wire` moves bytes, `unmarshal` reads messages, `bus` makes calls (the only importer of dbus_next),
`signals` says who hears what; `units` speaks to org.freedesktop.systemd1, `watch` streams what
happens to units, `properties` spells their settings; `journal` writes to the journal, `notify`
tells systemd how we are. Importing the package imports none of them.
"""
