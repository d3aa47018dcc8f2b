"""
The real proxy, with another patience for children that hang: ``python -m tests.support.impatient_proxy``.

``TESTS_PATIENCE`` has its times: seconds between two questions, until silence is reported, until a child is given up.
"""

import asyncio
import os

from proxy.runtime.process import forget_metrics_directory

PATIENCE = "TESTS_PATIENCE"


def main() -> None:
    """Run until told to end."""
    forget_metrics_directory()
    from proxy.settings.load import config_folder, load  # noqa: PLC0415
    from proxy.supervisor.silence import Patience  # noqa: PLC0415  only after the line above
    from proxy.supervisor.supervisor import Supervisor  # noqa: PLC0415
    from proxy.telemetry.log_output import configure  # noqa: PLC0415

    environ = dict(os.environ)
    patience = Patience(*map(float, environ.pop(PATIENCE).split()))
    settings = load(environ)
    writer = configure(settings.log, "supervisor")

    async def supervise() -> None:
        folder = config_folder(environ)
        await Supervisor(settings, folder, environ=environ, patience=patience, redis_patience=patience).run()

    asyncio.run(supervise())
    writer.close()


if __name__ == "__main__":
    main()
