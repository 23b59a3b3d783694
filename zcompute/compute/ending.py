"""Ending greenlets at the stop of an agent: bounded, and without an exception: what follows must be closed too."""

import logging
from collections.abc import Iterable

import gevent

log = logging.getLogger(__name__)

END_S_MAX = 1.0


def end_all(greenlets: Iterable[gevent.Greenlet], what: str) -> bool:
    """Kill these and wait for END_S_MAX at most; False when some of them go on."""
    try:
        gevent.killall(list(greenlets), block=True, timeout=END_S_MAX)
    except gevent.Timeout:  # raised by killall itself
        log.warning("%s not ended within end_s_max=%s", what, END_S_MAX)
        return False
    return True
