"""Every test process runs under gevent, as the services do."""

from gevent import monkey

monkey.patch_all()
