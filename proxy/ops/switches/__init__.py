"""The modes of a running proxy: what holds now, how it is kept, and how replicas learn of it."""
