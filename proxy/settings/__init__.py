"""What can be set: fields, types, where they come from, which contradict each other. No defaults live elsewhere."""
