"""Where answers are kept: in memory, in Redis, and on their way there. What they mean is the vendors' business."""
