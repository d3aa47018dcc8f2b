"""What the proxy is measured beside: other servers, the bare limits of its own libraries, and the load upon them."""
