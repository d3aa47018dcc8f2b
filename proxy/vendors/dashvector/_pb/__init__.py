"""Protocol buffers as far as a cache needs them: the wire format, without schemas or a runtime."""
