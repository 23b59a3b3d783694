"""Every test process runs under gevent, as the services do; drawn examples have no time limit on a shared machine."""

from gevent import monkey

monkey.patch_all()

from hypothesis import settings  # noqa: E402 - patched first

settings.register_profile("zcompute", deadline=None)
settings.load_profile("zcompute")
