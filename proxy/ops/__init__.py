"""
What operators see and switch.

- ``processes``: the supervisor, its workers, the embedded Redis.
- ``switches``: the modes and the purges of a running proxy.
- ``admin``: the admin listener and what it tells.
- ``telemetry``: log lines and metrics.
- ``settle_probe``: how long DashVector takes to show a write; ``settle_vendor`` asks it, ``settle_report`` tells.
"""
