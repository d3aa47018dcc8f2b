"""The process that holds the others: starts, watches and replaces workers and the embedded Redis. Serves no data."""
