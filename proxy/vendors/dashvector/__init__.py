"""DashVector: queries, fetches and writes, over HTTP and over gRPC."""
