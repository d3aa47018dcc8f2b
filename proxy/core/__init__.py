"""Values and decisions of the cache: no input or output, no clock, nothing third-party."""
