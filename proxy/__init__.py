"""
Dashcache: a transparent, read-through caching reverse proxy for DashScope and DashVector.

Reading order: ``flow`` (the life of one request), then whatever it names.

- ``core``: values and decisions; no input or output, no clock, nothing third-party.
- ``vendors``: what a vendor's request and answer mean; pure as well.
- ``cache``: the tiers (memory, Redis), the stored form of an entry, and the guard in front of Redis.
- ``transport``: how bytes reach an upstream and come back.
- ``flow``: joins the above into the life of one request.
- ``server``: how bytes reach us and leave again.
- ``ops``: what operators see and switch: modes, metrics, logs, health, the admin API, the processes.
- ``app``: the only place that wires everything.
"""
