"""The supervisor, its workers and the embedded Redis: who starts, watches and ends whom."""
