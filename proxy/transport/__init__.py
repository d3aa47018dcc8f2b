"""How requests reach an upstream, and how its answers come back. Decides nothing."""
