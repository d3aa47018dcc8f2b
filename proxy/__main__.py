"""``python -m proxy`` is ``dashcache``, and with ``worker``, which only the supervisor says, one worker process."""

import sys
from types import ModuleType
from typing import cast


def _worker() -> int:
    # structlog loads it, where it is installed, for tracebacks, which are never logged: 3 MiB in each worker.
    sys.modules.setdefault("rich", cast(ModuleType, None))
    from proxy.ops.processes.worker import main  # noqa: PLC0415

    return main()


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        sys.exit(_worker())
    from proxy.cli import main  # a worker has no use for a command line: 1 MiB

    main()
