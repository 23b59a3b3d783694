"""A compute written from docs/protocol.md alone: pyzmq and msgpack, nothing of zcompute.

Started as a program of its own, with one JSON object as its argument. It goes through every dialog of the protocol with
a real conductor, builds and destroys the servers that it is told to, and prints one JSON line for each thing learnt.
"""

import hashlib
import json
import sys
import time
import uuid
from collections import deque

import msgpack
import zmq

HELLO, WELCOME, CALL, REPLY, ERROR, CAST, REPORT, ACK, CREDIT, EVENT, BYE, NAK, HELLO_REQUIRED = range(1, 14)
WAIT_S = 30.0
BEAT_S = 1.0
QUIET_MS = 300
GRANTED = 1000
POWER_AFTER = {"compute.spawn": 1, "compute.destroy": 0, "stop": 4, "start": 1}
RESULT_NAMES = ("instance_uuid", "host", "generation", "task_id", "step", "attempt")


def partition_of(key):
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 256


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


class Peer:
    def __init__(self, setting):
        self.setting = setting
        self.host = setting["host"]
        self.socket = self.connect()
        self.incarnation, self.link_number, self.call_id = uuid.uuid4().hex, 0, 0
        self.arrived = deque()  # envelopes that nobody has looked at yet
        self.answers = {}  # call id -> reply or error
        self.map = {}
        self.epoch = 0
        self.next_sequence = self.limit = self.received = self.acks = 0
        self.report_seq = time.time_ns() // 1000
        self.unacked = {}  # (key, seq) -> payload
        self.verdicts = {}
        self.lanes, self.again = {}, deque()  # key -> the conductor's lane; (when, name) of what is to be sent again
        self.done = []  # methods that the conductor has called
        self.grants = {}  # instance -> reporter generation
        self.beaten_at = 0.0

    def connect(self):
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.immediate, socket.linger, socket.maxmsgsize = 1, 500, 4 * 1024 * 1024
        socket.heartbeat_ivl, socket.heartbeat_timeout, socket.heartbeat_ttl = 500, 1000, 1000
        socket.reconnect_ivl, socket.reconnect_ivl_max, socket.sndtimeo = 50, 1000, 10_000
        socket.curve_serverkey = self.setting["server_key"].encode()
        socket.curve_publickey = self.setting["public_key"].encode()
        socket.curve_secretkey = self.setting["secret_key"].encode()
        socket.connect(self.setting["address"])
        return socket

    def send(self, *envelopes):
        self.socket.send(msgpack.packb(list(envelopes)))

    def turn(self, wait_ms=50):
        """Read what has come; what must be answered at once is. A beat that the link does not take is left out."""
        if not self.socket.poll(wait_ms):
            now = time.monotonic()
            if self.epoch and now - self.beaten_at > BEAT_S and self.socket.poll(0, zmq.POLLOUT):
                self.beaten_at = now
                self.send([CAST, "host.beat", 1, 0, "req-peer", msgpack.packb({"hosts": [self.host]})])
            return
        parts = self.socket.recv_multipart()
        if len(parts) != 1:
            return
        for envelope in msgpack.unpackb(parts[0]):
            self.take(envelope)

    def take(self, envelope):
        kind, *fields = envelope
        if kind in (REPLY, ERROR) and fields[0]:
            self.answers[fields[0]] = envelope
        elif kind == CALL:
            self.serve(*fields[:7])
        elif kind in (ACK, CREDIT):
            link_number, received, limit = fields[:3]
            if link_number == self.link_number:
                self.received, self.limit = received, max(self.limit, limit)
            for key, seq, verdict, _, lane, retry_after_ms, *_ in fields[3] if kind == ACK else ():
                self.acks += link_number == self.link_number
                self.lanes[key] = lane or self.lanes.get(key, 0)
                if verdict == "busy":  # its lane takes no more now: again, and nothing of this key before
                    self.again.append((time.monotonic() + retry_after_ms / 1000, (key, seq)))
                    continue
                self.unacked.pop((key, seq), None)
                self.verdicts[(key, seq)] = verdict
            self.arrived.append(envelope)
        elif kind == EVENT and fields[0] == "map":
            self.map = msgpack.unpackb(fields[3])
            self.arrived.append(envelope)
        else:
            self.arrived.append(envelope)

    def until(self, holds, what):
        deadline = time.monotonic() + WAIT_S
        while True:
            found = holds()
            if found:
                return found
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {WAIT_S} s: {what}")
            self.turn()
            if self.again and time.monotonic() >= self.again[0][0]:
                self.send_reports([self.again.popleft()[1]])

    def of_kind(self, kind):
        for envelope in self.arrived:
            if envelope[0] == kind:
                self.arrived.remove(envelope)
                return envelope
        return None

    def expect(self, kind, what):
        return self.until(lambda: self.of_kind(kind), what)

    def hello(self, changed=None):
        """Say hello; ``changed`` puts other values in the places of its elements."""
        self.link_number += 1
        own, protocol = self.setting, [1, 0, self.link_number]
        who = [own["service_id"], self.incarnation, "compute", own["cell"], "independent", [self.host]]
        hello = [HELLO, *protocol, *who, {"compute": [[1, 0], [1, 0]]}, ["map"], msgpack.packb({}), GRANTED]
        for place, value in (changed or {}).items():
            hello[place] = value
        self.send(hello)

    def come_up(self):
        self.hello()
        welcome = self.expect(WELCOME, "welcome")
        assert welcome[3] == self.link_number, welcome
        self.next_sequence = self.received = self.acks = 0
        self.limit = welcome[13]
        return welcome

    def call(self, method, request, major=1, minor=0):
        self.call_id += 1
        call_id = self.call_id
        payload = msgpack.packb(request)
        self.send([CALL, call_id, method, major, minor, 10_000, "req-peer", payload])
        answer = self.until(lambda: self.answers.pop(call_id, None), method)
        if answer[0] == REPLY:
            return msgpack.unpackb(answer[2]) if answer[2] else None
        return {"error": answer[2], "message": answer[3], "details": answer[4] if len(answer) > 4 else {}}

    def report(self, key, body):
        self.send_reports([self.queue(key, body)])

    def observe(self, key, power_state):
        """An observation, not sent yet: its name."""
        body = {"type": "observation", "instance_uuid": key, "host": self.host, "power_state": power_state}
        return self.queue(key, {**body, "generation": self.grants[key]})

    def queue(self, key, body):
        self.report_seq += 1
        self.unacked[(key, self.report_seq)] = msgpack.packb(body)
        return key, self.report_seq

    def send_reports(self, names):
        assert self.next_sequence + len(names) <= self.limit, "no credit"
        batch = [[key, seq, self.unacked[(key, seq)]] for key, seq in names]
        self.send([REPORT, self.link_number, self.next_sequence, batch])
        self.next_sequence += len(names)

    def serve(self, call_id, method, major, minor, remaining_ms, request_id, payload):
        """The conductor's calls: build, destroy, a step's verb, adopt, forget."""
        request = msgpack.unpackb(payload)
        order, did = request["order"], request.get("verb", method)
        named = {name: order[name] for name in RESULT_NAMES}
        key = order["instance_uuid"]
        self.grants[key] = order.get("reporter_generation") or self.grants.get(key, 0)
        self.send([REPLY, call_id, msgpack.packb({"running": False, "power_state": 0})])
        self.done.append(did)
        say("called", method=method, version=[major, minor], remaining_ms=remaining_ms, request_id=request_id, did=did)
        if did in POWER_AFTER:
            self.report(key, {**named, "type": "step_result", "outcome": "done", "power_state": POWER_AFTER[did]})

    def quiet(self):
        """Nothing of a kind is expected: a while in which it would have come."""
        until = time.monotonic() + QUIET_MS / 1000
        while time.monotonic() < until:
            self.turn()

    def run(self):
        self.refusals()
        welcome = self.come_up()
        say("welcome", peer=welcome[4], role=welcome[6], interfaces=welcome[10], credit=welcome[13], lane=welcome[14])
        self.until(lambda: self.map, "the map")
        say("event", topic="map", mine=self.map["owners"][partition_of(self.host)])
        self.calls()
        self.take_up()
        say("ready", epoch=self.epoch)
        self.until(lambda: "compute.spawn" in self.done and not self.unacked, "a build")
        say("built", verdicts=[*self.verdicts.values()], limit=self.limit, acks=self.acks, lanes=[*self.lanes.values()])
        self.report_dialogs()
        self.bad_frames()
        self.expired()
        self.reconnect()
        say("again", link_number=self.link_number)
        for verb in ("stop", "start"):
            self.until(lambda verb=verb: verb in self.done and not self.unacked, verb)
        self.until(lambda: "compute.destroy" in self.done and not self.unacked, "a destroy")
        say("destroyed", limit=self.limit, acks=self.acks)
        self.retired()

    def retired(self):
        """A later incarnation of this service id takes over: the earlier route is told bye."""
        earlier, self.socket, self.incarnation = self.socket, self.connect(), uuid.uuid4().hex
        self.epoch = 0  # no beats any more
        self.come_up()
        self.socket = earlier
        say("bye", reason=self.expect(BYE, "bye of the conductor")[1])

    def refusals(self):
        self.send([CALL, 1, "cluster.map_get", 1, 0, 1000, "", b""])
        say("hello_required", reason=self.expect(HELLO_REQUIRED, "hello_required")[1:])
        for what, changed in (
            ("foreign_protocol", {1: 9}),
            ("foreign_role", {6: "conductor"}),
            ("foreign_cell", {7: "nowhere"}),
            ("foreign_host", {9: ["another"]}),
        ):
            self.hello(changed)
            say(what, error=self.expect(ERROR, what)[2])

    def calls(self):
        say("map_get", version=self.call("cluster.map_get", {})["map"]["version"])
        say("unknown_method", **self.call("cluster.nothing", {}))
        say("unknown_interface", **self.call("tea.brew", {}))
        say("foreign_major", **self.call("cluster.map_get", {}, major=7))
        say("newer_minor", **self.call("cluster.map_get", {}, minor=99))
        say("forbidden", **self.call("instance.build", {}))
        say("invalid", **self.call("host.attach", {"epochs": [1]}))

    def take_up(self):
        inventory = {"name": self.host, "total": {"vcpus": 8, "memory_mb": 8192, "disk_gb": 100}}
        begun = self.call("host.begin", {"inventory": inventory, "service_id": self.setting["service_id"]})
        self.epoch = begun["agent_epoch"]
        self.call("host.attach", {"epochs": {self.host: self.epoch}})

    def report_dialogs(self):
        """A report of the state, with a gap before it, then repeated; then the idle probe."""
        key = next(key for key, _ in self.verdicts)
        name = self.observe(key, 3)
        batch = [[*name, self.unacked[name]]]
        self.send([REPORT, self.link_number, self.next_sequence + 5, batch])
        say("nak", expected=self.expect(NAK, "nak")[2], awaited=self.next_sequence)
        self.send_reports([name])
        self.until(lambda: not self.unacked, "the ack of an observation")
        say("observed", verdict=self.verdicts[name])
        self.arrived.clear()
        self.send([REPORT, self.link_number, self.next_sequence - 1, batch])
        say("credit", told=self.expect(CREDIT, "credit after a repeat")[2], sent=self.next_sequence)
        self.send([CREDIT, self.link_number, 0, GRANTED])
        self.quiet()
        say("probe", required=self.of_kind(HELLO_REQUIRED) is not None)

    def bad_frames(self):
        self.socket.send(b"\xc1 no frame")
        say("refused", error=self.expect(ERROR, "a note about a malformed frame")[2])
        self.socket.send_multipart([b"two", b"parts"])
        self.send([CAST, "tea.brew", 1, 0, "", b"\x80"])
        say("link_goes_on", version=self.call("cluster.map_get", {})["map"]["version"])

    def expired(self):
        """A call without time left is neither begun nor answered."""
        self.call_id += 1
        self.send([CALL, self.call_id, "cluster.map_get", 1, 0, 0, "", msgpack.packb({})])
        self.quiet()
        say("expired", answered=self.call_id in self.answers)

    def reconnect(self):
        """A report may be on its way when the link ends: it goes again in the next life."""
        name = self.observe(next(iter(self.grants)), 1)
        self.send_reports([name])
        self.send([BYE, "a pause"])
        self.quiet()
        welcome = self.come_up()
        self.call("host.attach", {"epochs": {self.host: self.epoch}})
        assert welcome[13] == self.limit, "credit begins anew"
        if self.unacked:
            self.send_reports(list(self.unacked))
        self.until(lambda: not self.unacked, "the ack of a report of an earlier life")
        say("resent", verdict=self.verdicts[name])


if __name__ == "__main__":
    Peer(json.loads(sys.argv[1])).run()
