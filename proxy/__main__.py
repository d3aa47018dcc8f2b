"""``python -m proxy`` is ``dashcache``, and with ``worker``, which only the supervisor says, one worker process."""

import sys


def _worker() -> int:
    from proxy.runtime.process import load_sparingly  # noqa: PLC0415

    load_sparingly()
    from proxy.worker.process import main  # noqa: PLC0415

    return main()


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        sys.exit(_worker())
    from proxy.cli import main  # a worker has no use for a command line: 1 MiB

    main()
