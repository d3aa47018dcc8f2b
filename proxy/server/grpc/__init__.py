"""The gRPC listeners: calls, connections and how they are given up."""
