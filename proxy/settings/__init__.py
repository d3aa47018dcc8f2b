"""Settings: their fields and types, where they come from, which contradict each other. No defaults live elsewhere."""
