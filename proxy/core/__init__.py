"""Values and pure decisions: what all other rooms speak in. No socket, no clock, no thread, nothing third-party."""
