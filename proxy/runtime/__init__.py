"""Tasks, work beside the loop, heap, files: the machine, for any of our processes. Nothing here knows of requests."""
