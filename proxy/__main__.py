"""``python -m proxy`` is ``dashcache``."""

from proxy.cli import main

if __name__ == "__main__":
    main()
