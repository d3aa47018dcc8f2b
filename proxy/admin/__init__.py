"""The admin listener of a running proxy and the client of its API: health, statistics, orders."""
