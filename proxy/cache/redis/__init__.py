"""Redis as a tier: commands, connections, deadlines, the breaker. What is asked for is the cache's business."""
