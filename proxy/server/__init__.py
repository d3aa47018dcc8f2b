"""How requests come in and answers go out, over HTTP and gRPC. What the answer is, ``request`` decides."""
