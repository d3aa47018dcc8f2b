"""How requests reach an upstream and how its answers come back; knows no vendor and no cache."""
