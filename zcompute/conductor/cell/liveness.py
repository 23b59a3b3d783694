"""Which hosts of the owned partitions are alive, by their beats. Pure: monotonic seconds are passed in.

Down after three missed beats, up after three in a row. A host whose owner is new here is unknown: it keeps its
committed state until it has beaten, or failed to, for as long as any other. When more than a tenth of the hosts vanish
together it is rather this conductor's network: none is declared down, and an alarm is raised (design, section 8).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from zcompute.objects.host import HOST_DOWN, HOST_UNKNOWN, HOST_UP


@dataclass(frozen=True)
class LivenessSettings:
    """``beat_s`` as agents send them; a beat counts as in a row when it comes within one interval too many.

    Two that are less than ``apart_s_min`` apart are one that two relays handed on.
    """

    beat_s: float = 2.0
    apart_s_min: float = 0.5
    missed_max: int = 3
    in_a_row: int = 3
    together_share: float = 0.1
    together_hosts_min: int = 3
    together_of_min: int = 10

    @property
    def silence_s_max(self) -> float:
        return self.beat_s * self.missed_max


@dataclass
class _Watched:
    state: str
    last_beat: float
    in_a_row: int = 0


@dataclass(frozen=True)
class Findings:
    """Hosts to commit as up or down, and those that vanished together and are therefore left as they are."""

    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()


class Liveness:
    """Beats of many hosts."""

    def __init__(self, settings: LivenessSettings | None = None) -> None:
        self._settings = settings or LivenessSettings()
        self._hosts: dict[str, _Watched] = {}

    def watch(self, host: str, now: float) -> None:
        """A host whose owner this conductor has become: unknown. One that is watched already stays as it is."""
        self._hosts.setdefault(host, _Watched(HOST_UNKNOWN, now))

    def begun(self, host: str, now: float) -> None:
        """Its agent has just begun, and was committed as up."""
        self._hosts[host] = _Watched(HOST_UP, now)

    def forget(self, hosts: Iterable[str]) -> None:
        """These are others' to watch now."""
        for host in hosts:
            self._hosts.pop(host, None)

    def beat(self, host: str, now: float) -> bool:
        """A beat has come. False: the host is another's to watch."""
        watched = self._hosts.get(host)
        if watched is None:
            return False
        since = now - watched.last_beat
        if since > 2 * self._settings.beat_s:
            watched.in_a_row = 1
        elif since >= self._settings.apart_s_min or not watched.in_a_row:
            watched.in_a_row += 1
        watched.last_beat = now
        return True

    def check(self, now: float) -> Findings:
        """What has changed. A finding is repeated at each check until ``declared`` says that it was committed."""
        settings = self._settings
        up, silent = [], []
        for host, watched in self._hosts.items():
            if now - watched.last_beat > settings.silence_s_max:
                watched.in_a_row = 0
                if watched.state != HOST_DOWN:
                    silent.append(host)
            elif watched.state != HOST_UP and watched.in_a_row >= settings.in_a_row:
                up.append(host)
        together = len(silent) >= settings.together_hosts_min and len(self._hosts) > settings.together_of_min
        if together and len(silent) > len(self._hosts) * settings.together_share:
            return Findings(up=tuple(up), vanished=tuple(silent))
        return Findings(up=tuple(up), down=tuple(silent))

    def declared(self, host: str, state: str) -> None:
        """The state was committed."""
        watched = self._hosts.get(host)
        if watched is not None:
            watched.state = state

    def state(self, host: str) -> str:
        """What is known here: up, down or unknown."""
        watched = self._hosts.get(host)
        return HOST_UNKNOWN if watched is None else watched.state
