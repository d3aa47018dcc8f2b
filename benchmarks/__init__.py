"""Every figure that the documentation quotes, each from a command: ``python -m benchmarks.NAME``. Loopback only."""
