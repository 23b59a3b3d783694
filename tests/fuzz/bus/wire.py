"""What the processes of a run share: keys, and orders and answers as lines of JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import zmq

ROOT = Path(__file__).resolve().parents[3]
ANSWER_S_MAX = 120.0
CELL = "c1"


class Pair(msgspec.Struct):
    """One CURVE key pair."""

    name: str
    public: str
    secret: str


class Keys(msgspec.Struct):
    """The key pairs of a run."""

    server: Pair
    neighbour: Pair
    attackers: list[Pair]


def make_keys(attackers: int) -> Keys:
    """New keys."""

    def pair(name: str) -> Pair:
        public, secret = zmq.curve_keypair()
        return Pair(name, public.decode(), secret.decode())

    return Keys(pair("conductor-1"), pair("neighbour"), [pair(f"evil-{number}") for number in range(attackers)])


class Ask(msgspec.Struct):
    """A request with a little in it."""

    text: str
    number: int = 0


class Method(msgspec.Struct, frozen=True):
    """A method of the victim's interface."""

    name: str
    reply: type | None = Ask
    interface: str = "echo"
    request: type = Ask
    version: tuple[int, int] = (1, 0)
    roles: frozenset[str] = frozenset({"compute"})
    pool: str = "calls"
    idempotent: bool = False


SAY = Method("say")
NOTE = Method("note", reply=None)


def answer(**values: Any) -> None:
    """Tell the process that started this one."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Process:
    """A part of the run in a process of its own, asked in lines."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", f"tests.fuzz.bus.{module}", *arguments],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def order(self, *words: object) -> None:
        """Write one line."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.popen.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Read one line. Raises EOFError when the process has ended."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise EOFError(f"{self.popen.args!r} ended with {self.popen.wait(5)}")
        read: dict[str, Any] = json.loads(line)
        return read

    def close(self) -> None:
        """End it."""
        self.popen.kill()
        self.popen.communicate(timeout=10)
