"""Property tests run shallow by default and deep in the nightly run; time limits are pytest's, not Hypothesis'."""

import os

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("fast", max_examples=40, **_COMMON)
settings.register_profile("deep", max_examples=500, **_COMMON)
_EXAMPLES = os.environ.get("DASHCACHE_TEST_EXAMPLES")
if _EXAMPLES:
    settings.register_profile("asked for", max_examples=int(_EXAMPLES), **_COMMON)
settings.load_profile("asked for" if _EXAMPLES else "deep" if os.environ.get("DASHCACHE_TEST_SLOW") else "fast")
