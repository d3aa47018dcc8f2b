"""Orders that reach every worker and replica, and the ways they take: the channel to a worker, and Redis."""
