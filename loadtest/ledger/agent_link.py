"""One simulated agent's link to one conductor: the bus' own protocol core on a socket that one loop drives for all."""

import uuid
from dataclasses import dataclass

import msgspec
import zmq

from loadtest.ledger.orders import Place
from loadtest.ledger.world import CELL
from zcompute.bus import Ack, BusError, Identity, Limits, Report
from zcompute.bus.envelope import Call, Cast, Error, Hello, Reply, encode_attributes
from zcompute.bus.happenings import AcksArrived, HelloRefused, LinkLost, LinkUp, OpenCall
from zcompute.bus.protocol import LinkCore, State
from zcompute.bus.sockets import open_dealer
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.interface import Method
from zcompute.objects.messages.hosts import HostAttachRequest, HostBeat, HostBeginReply, HostBeginRequest
from zcompute.objects.methods import HOST_ATTACH, HOST_BEAT, HOST_BEGIN

HELLO_AGAIN_S = 2.0
CALL_S = 30.0
EVENTS, POLLIN, POLLOUT, NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT), int(zmq.NOBLOCK)
LIMITS = Limits()
_encode = msgspec.msgpack.Encoder().encode


@dataclass
class Sent:
    """A report without a final verdict: of which instance, when it was due (monotonic seconds)."""

    number: int
    due: float
    report: Report


class AgentLink:
    """Hello, calls, reports and verdicts. ``sent``: reports that wait for their verdict, by sequence."""

    def __init__(
        self, agent: int, host: str, identity: Identity, place: Place, context: "zmq.Context[zmq.Socket[bytes]]"
    ) -> None:
        self.agent = agent
        self.host = host
        self.place = place
        self.core = LinkCore(LIMITS)
        self.sent: dict[int, Sent] = {}
        self.waiting: list[int] = []  # paced updates that wait for the frame in flight
        self.again: list[tuple[float, Sent]] = []  # put off, until when
        self.epoch = 0
        self.attached = False
        self.asked = False
        self.superseded = False
        self.lost_times = 0
        self._identity = identity
        self._incarnation = uuid.uuid4().hex
        self._hello_at = 0.0
        self._said_at = 0.0
        self._socket = open_dealer(context, identity, LIMITS, place.public_key)
        self._socket.connect(place.address)
        self.descriptor = int(self._socket.getsockopt(zmq.FD))

    @property
    def up(self) -> bool:
        """Welcomed."""
        return self.core.state is State.UP

    def open_reports(self) -> int:
        """How many updates wait for a verdict, to be sent again or to be sent at all."""
        return len(self.sent) + len(self.again) + len(self.waiting)

    def state(self) -> str:
        """For whoever asks why updates were never answered."""
        return (
            f"{self._identity.service_id} to {self.place.address}: {self.core.state.name}, attached {self.attached}, "
            f"asked {self.asked}, lost {self.lost_times} times, sent {len(self.sent)}, again {len(self.again)}, "
            f"waiting {len(self.waiting)}, in the core {len(self.core.reports_out.unacked)}"
        )

    def close(self) -> None:
        """Leave without a word."""
        self._socket.close(0)

    def say_hello(self, now: float) -> None:
        """Say hello when the connection takes it; again when nobody answered."""
        if now - self._hello_at < HELLO_AGAIN_S or not int(self._socket.getsockopt(EVENTS)) & POLLOUT:
            return
        self._hello_at = now
        self.core.state = State.DOWN
        identity = self._identity
        hello = Hello(
            1, 1, 0, identity.service_id, self._incarnation, identity.role, CELL, identity.release, [self.host], {}, [],
            encode_attributes({}, LIMITS), LIMITS.report_credit,
        )  # fmt: skip
        self._send(self.core.begin_hello(hello, now), now)

    # -- calls ------------------------------------------------------------------------------------------------------

    def begin_host(self, now: float) -> None:
        """Take up the host: a new epoch, committed by its owner."""
        total = Amounts(vcpus=1000, memory_mb=1 << 20, disk_gb=1 << 14)
        inventory = HostInventory(name=self.host, total=total)
        self._call(HOST_BEGIN, HostBeginRequest(inventory=inventory, service_id=self._identity.service_id), now)

    def attach(self, epoch: int, now: float) -> None:
        """Speak for the host over this link."""
        self._call(HOST_ATTACH, HostAttachRequest(epochs={self.host: epoch}), now)

    def beat(self, now: float) -> None:
        """Say that the host is alive."""
        method = f"{HOST_BEAT.interface}.{HOST_BEAT.name}"
        self.core.cast(Cast(method, *HOST_BEAT.version, "", _encode(HostBeat(hosts=[self.host]))))
        self._flush(now)

    def _call(self, method: Method, request: object, now: float) -> None:
        self.asked = True
        name = f"{method.interface}.{method.name}"
        call = Call(0, name, *method.version, int(CALL_S * 1000), "", _encode(request))
        self.core.call(OpenCall(call, method.interface, now + CALL_S, method.idempotent))
        self._flush(now)

    def _answered(self, answer: OpenCall) -> None:
        self.asked = False
        outcome = answer.outcome
        if isinstance(outcome, Error) and outcome.wire_name in ("NotOwner", "Busy", "Unavailable"):
            return
        if isinstance(outcome, Error) and outcome.wire_name == "EpochRefused":
            self.superseded = True  # a host.begin whose answer was lost with its link was carried out twice
            return
        if not isinstance(outcome, Reply):
            raise RuntimeError(f"{self.host}: {answer.call.method}: {outcome}")
        if answer.call.method.endswith(HOST_BEGIN.name):
            self.epoch = msgspec.msgpack.decode(outcome.payload, type=HostBeginReply).agent_epoch
        else:
            self.attached = True

    # -- reports ----------------------------------------------------------------------------------------------------

    def report(self, updates: list[Sent], now: float) -> None:
        """Send these in one frame; what the link does not take is put off."""
        taken = self.core.report([update.report for update in updates]) if self.attached else 0
        for update in updates[:taken]:
            self.sent[update.report.seq] = update
        self.again += [(now, update) for update in updates[taken:]]
        self._flush(now)

    def ask(self, now: float) -> None:
        """Let the conductor hear something when nothing was said for a while."""
        if now - self._said_at >= LIMITS.heartbeat_interval_ms / 1000:
            self.core.probe()
            self._flush(now)

    def tick(self, now: float) -> None:
        """Send again what the conductor has not confirmed."""
        self.core.tick(now)
        self._flush(now)

    def _flush(self, now: float) -> None:
        core = self.core
        while (frame := core.take_frame(now)) is not None:
            self._send(frame, now)
            if core.outgoing.drained:
                return

    def _send(self, frame: bytes, now: float) -> None:
        self._said_at = now
        try:
            self._socket.send(frame, NOBLOCK)
        except zmq.Again:
            self._lost(now)

    def _lost(self, now: float) -> None:
        """Begin anew: hello, attach; the core sends again what has no verdict."""
        self.core.lost("blocked", now)
        self.attached = self.asked = False
        self.lost_times += 1

    def read(self, now: float) -> list[Ack]:
        """Take what arrived; the verdicts. Raises BusError when the conductor refused the agent."""
        acks: list[Ack] = []
        while int(self._socket.getsockopt(EVENTS)) & POLLIN:
            for happening in self.core.receive(self._socket.recv(NOBLOCK), now):
                if isinstance(happening, AcksArrived):
                    acks += happening.acks
                elif isinstance(happening, OpenCall):
                    self._answered(happening)
                elif isinstance(happening, HelloRefused):
                    self._refused(happening.error)
                elif isinstance(happening, LinkUp):
                    self._came_up(happening, now)
                elif isinstance(happening, LinkLost):
                    self._lost(now)
        return acks

    def _came_up(self, up: LinkUp, now: float) -> None:
        if not up.same_incarnation:  # its core has dropped what the former process had not answered
            self.again += [(now, sent) for sent in self.sent.values()]
            self.sent.clear()
        self._flush(now)

    def _refused(self, error: Exception) -> None:
        if isinstance(error, BusError) and error.wire_name == "Unavailable":
            return
        raise error
