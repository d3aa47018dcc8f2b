"""What operators order of a running proxy, modes and purges: what holds, how it is kept, how replicas learn of it."""
