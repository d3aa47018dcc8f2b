"""The life of a request, from its plan to its answer; ``flow`` tells it. How it came in is the server's business."""
