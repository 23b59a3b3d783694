"""NATS through nats-py, plain: requests and publications of a msgpack map, coded with msgspec as fast as it goes.

python -m loadtest.bus.ends.nats_peer serve URL | drive URL SUBJECT
"""

import asyncio
import sys
import time
from typing import Any

import msgspec
import nats

from loadtest.bus import payload
from loadtest.bus.orders import (
    CALLS,
    CASTS,
    DRAIN_DEADLINE_S,
    PACED_CALLS_PER_SECOND,
    Done,
    Order,
    paced,
    read_order,
    to_line,
)

SUBJECT = "bench"
TIMEOUT_S = 60
PENDING_BYTES_MAX = 2**30
CASTS_PER_FLUSH = 2_000
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


async def serve(url: str) -> None:
    """Echo calls, count casts."""
    connection = await nats.connect(url)
    casts = 0

    async def echo(message: Any) -> None:
        await message.respond(encode(decode(message.data)))

    async def note(message: Any) -> None:
        nonlocal casts
        decode(message.data)
        casts += 1

    async def count(message: Any) -> None:
        await message.respond(encode(casts))

    for name, handler in (("echo", echo), ("note", note), ("count", count)):
        await connection.subscribe(
            f"{SUBJECT}.{name}", cb=handler, pending_msgs_limit=2**24, pending_bytes_limit=PENDING_BYTES_MAX
        )
    await connection.flush()
    print(SUBJECT, flush=True)
    await asyncio.Event().wait()


class Client:
    """Tasks that call, or one that casts."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def do(self, order: Order) -> Done:
        """Carry out one order."""
        instance = payload.make(order.payload)
        started = time.monotonic()
        end = started + order.seconds
        if order.kind == CALLS:
            counts = await asyncio.gather(*(self._call_until(end, instance) for _ in range(order.in_flight)))
            return Done(sum(counts), time.monotonic() - started)
        if order.kind == CASTS:
            return await self._casts(instance, order)
        taken = []
        for number in range(int(order.seconds * PACED_CALLS_PER_SECOND)):
            await asyncio.sleep(max(0.0, started + number / PACED_CALLS_PER_SECOND - time.monotonic()))
            sent = time.monotonic()
            await self._call("echo", encode(instance))
            taken.append(time.monotonic() - sent)
        return paced(taken, time.monotonic() - started)

    async def _call(self, name: str, data: bytes) -> Any:
        answer = await self._connection.request(f"{SUBJECT}.{name}", data, timeout=TIMEOUT_S)
        return decode(answer.data)

    async def _call_until(self, end: float, instance: dict[str, Any]) -> int:
        count = 0
        while time.monotonic() < end:
            if (await self._call("echo", encode(instance)))["uuid"] != instance["uuid"]:
                raise RuntimeError("wrong echo")
            count += 1
        return count

    async def _casts(self, instance: dict[str, Any], order: Order) -> Done:
        before = await self._call("count", b"")
        started = time.monotonic()
        end = started + order.seconds
        publish = self._connection.publish
        count = 0
        while time.monotonic() < end:
            for _ in range(CASTS_PER_FLUSH):
                await publish(f"{SUBJECT}.note", encode(instance))
            count += CASTS_PER_FLUSH
            await self._connection.flush(TIMEOUT_S)
        while (received := await self._call("count", b"") - before) < count:
            if time.monotonic() > started + DRAIN_DEADLINE_S:
                raise RuntimeError(f"{received} of {count} casts arrived")
            await asyncio.sleep(0.002)
        return Done(count, time.monotonic() - started)


async def drive(url: str) -> None:
    """Carry out the orders on standard input."""
    client = Client(await nats.connect(url))
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(to_line(await client.do(read_order(line))), flush=True)


def main() -> None:
    """Serve, or drive the server."""
    asyncio.run(serve(sys.argv[2]) if sys.argv[1] == "serve" else drive(sys.argv[2]))


if __name__ == "__main__":
    main()
