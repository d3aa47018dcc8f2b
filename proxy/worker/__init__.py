"""A worker process: how it is built of all the other rooms, its ports, and its life from start to end."""
