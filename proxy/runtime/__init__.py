"""What any of our processes needs of the machine: tasks, work beside the loop, heap, files; nothing of requests."""
