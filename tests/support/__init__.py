"""
The test rig: real processes, raw sockets and scripted faults. It knows the product only from outside.

- ``redis_server`` (with ``redis_dump``): a real Redis to hang, kill, fill and search.
- ``proxy_process`` (with ``process_log``, ``admin_calls``): the product as a child process.
- ``raw_upstream`` (with ``answers``, ``recorded``): the upstream double. ``raw_client``: what really came back.
  ``wire``: HTTP/1.1 as bytes, which both read by.
- ``fault_proxy`` (with ``toxics``): trouble on the line between any two of them.
- ``open_loop``: load at a fixed arrival rate. ``clock``, ``gate``, ``waiting``: time and order, without sleeping.
- ``canary``: secrets that can be searched for. ``child``, ``ports``: what the processes above have in common.
"""
