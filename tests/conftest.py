"""Every test process runs under gevent, as the services do.

Drawn examples have no time limit on a shared machine; in CI they are the same in every run, elsewhere new ones.
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402

from hypothesis import settings  # noqa: E402 - patched first

settings.register_profile("zcompute", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("zcompute")
