"""Every figure that the documentation quotes, each from a command: ``python -m benchmarks.NAME``; loopback only, bounded."""
