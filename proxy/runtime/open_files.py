"""How many connections the system lets a process have: each is an open file."""

import resource

_LEAST = 16


def room_for(connections: int, others: int) -> int:
    """
    Raise this process's limit as far as it may for *connections* and *others*; how many connections there is room for.

    Without room for one more, a process can neither accept a connection nor refuse it, nor call anybody.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + others
    if resource.RLIM_INFINITY != soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, max(_LEAST, soft - others))
