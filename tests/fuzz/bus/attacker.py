"""Valid keys in bad hands: `... attacker KEYS ADDRESS SEED`, then a line `MUTATIONS FRAMES_PER_SECOND` for each burst.

Each connection says hello, proper or mutated, sends mutated frames with real ones between, asks and hardly reads, says
hello anew on the same connection, and begins again on a new one after a while.
"""

import os
import random
import sys
import time
from collections.abc import Iterator

import msgspec
import zmq

from tests.fuzz.bus import seeds, wire
from tests.fuzz.bus.mutate import Mutator
from zcompute.bus.envelope import encode_frame

FRAMES_OF_A_CONNECTION = 20_000
FRAMES_OF_A_HELLO = 40
LINGER_MS = 1_000
PROPER_HELLO_SHARE = 0.9
PROPER_FRAME_SHARE = 0.05
SEVERAL_PARTS_SHARE = 0.002
READ_SHARE = 0.5
SEND_S_MAX = 30.0
NICENESS = 10  # a real attacker has a machine of its own: it takes the victim's time, not the neighbour's processor
PACE_FRAMES = 50


class Connection:
    """One DEALER of one stolen key."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", pair: wire.Pair, address: str, server: str) -> None:
        self._make = lambda: self._open(context, pair, address, server)
        self.name = pair.name
        self.socket = self._make()
        self.sent = FRAMES_OF_A_CONNECTION
        self.lives = 0

    @staticmethod
    def _open(
        context: "zmq.Context[zmq.Socket[bytes]]", pair: wire.Pair, address: str, server: str
    ) -> "zmq.Socket[bytes]":
        socket = context.socket(zmq.DEALER)
        socket.linger = LINGER_MS
        socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
        socket.curve_serverkey = server.encode()
        socket.sndtimeo = int(SEND_S_MAX * 1000)
        socket.connect(address)
        return socket

    def begin(self, mutator: Mutator, chance: random.Random) -> None:
        """A new connection when it is time for one, and a hello: of the same incarnation, or of the next."""
        if self.sent >= FRAMES_OF_A_CONNECTION:
            self.drain()  # unread bytes would have the kernel throw away what was sent
            self.socket.close(LINGER_MS)
            self.socket = self._make()
            self.sent = 0
        self.lives += 1
        hello = encode_frame([seeds.hello(self.name, self.lives, f"e{self.lives // 3}")])
        self.socket.send(hello if chance.random() < PROPER_HELLO_SHARE else mutator.mutate(hello))

    def drain(self) -> None:
        """Throw away what arrived."""
        while self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            self.socket.recv_multipart(zmq.NOBLOCK)


def attack(connections: list[Connection], mutator: Mutator, chance: random.Random, real: list[bytes]) -> Iterator[None]:
    """Sends one mutated frame for each step."""
    while True:
        connection = chance.choice(connections)
        if connection.sent % FRAMES_OF_A_HELLO == 0:
            connection.begin(mutator, chance)
        if chance.random() < PROPER_FRAME_SHARE:
            connection.socket.send(chance.choice(real))
        if chance.random() < SEVERAL_PARTS_SHARE:
            connection.socket.send_multipart([b""] * chance.randrange(2, 5))
        connection.socket.send(mutator.frame())
        connection.sent += 1
        if connection.sent % 64 == 0 and chance.random() < READ_SHARE:
            connection.drain()
        yield


def main() -> None:
    """Obeys line by line."""
    keys = msgspec.json.decode(sys.argv[1], type=wire.Keys)
    os.nice(NICENESS)
    seed = int(sys.argv[3])
    chance = random.Random(seed)
    real = seeds.frames()
    mutator = Mutator(seed, real)
    lives = dict.fromkeys((pair.name for pair in keys.attackers), 0)
    wire.answer(ready=True)
    for line in sys.stdin:
        mutations, per_second = (int(word) for word in line.split())
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        connections = [Connection(context, pair, sys.argv[2], keys.server.public) for pair in keys.attackers]
        for connection in connections:
            connection.lives = lives[connection.name]
        steps = attack(connections, mutator, chance, real)
        started = time.monotonic()
        for number in range(mutations):
            next(steps)
            if per_second and number % PACE_FRAMES == 0:
                time.sleep(max(0.0, started + number / per_second - time.monotonic()))
        for connection in connections:
            lives[connection.name] = connection.lives
            connection.socket.close(LINGER_MS)
        context.term()
        wire.answer(sent=mutations, seconds=time.monotonic() - started)


main()
