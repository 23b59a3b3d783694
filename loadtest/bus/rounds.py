"""Rounds: every contender does every order in turn, so that all meet the same noise; medians over the rounds."""

import statistics
from collections.abc import Callable, Sequence

import msgspec
import zmq

from loadtest.bus.contender import Contender, Measured
from loadtest.bus.orders import CALLS, CASTS, PACED, Order
from loadtest.bus.payload import BIG, SMALL

OURS, PLAIN, RAW = "ours", "plain", "raw"
WARM_UP_S = 0.3
Results = dict[str, dict[str, list[Measured]]]
"""Contender -> order's name -> one measurement a round."""


def orders(seconds: float, paced_s: float, concurrency: Sequence[int]) -> dict[str, Order]:
    """The orders by name, e.g. `calls_big_64`."""
    made = {f"calls_big_{at}": Order(CALLS, BIG, at, seconds) for at in concurrency}
    made["calls_small_64"] = Order(CALLS, SMALL, 64, seconds)
    made["casts_big"] = Order(CASTS, BIG, 1, seconds)
    made["casts_small"] = Order(CASTS, SMALL, 1, seconds)
    made["paced_big"] = Order(PACED, BIG, 1, paced_s)
    return made


def applies(contender: str, name: str) -> bool:
    """Whether a contender is asked for it: zerorpc has no casts, our plain side is there for the cost of CURVE."""
    if contender == PLAIN:
        return name == "calls_big_64"
    return not (contender == "zerorpc" and name.startswith("casts"))


def run(contenders: Sequence[Contender], work: dict[str, Order], rounds: int, say: Callable[[str], None]) -> Results:
    """Do all orders `rounds` times, the contenders alternating within each order and changing who begins."""
    results: Results = {contender.name: {} for contender in contenders}
    for contender in contenders:
        for name in ("calls_big_64", "casts_big"):
            if applies(contender.name, name):
                order = work[name]
                contender.do(Order(order.kind, order.payload, order.in_flight, WARM_UP_S))
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, order in work.items():
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                if applies(contender.name, name):
                    results[contender.name].setdefault(name, []).append(contender.do(order))
    return results


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _paired(ours: list[Measured], theirs: list[Measured], compare: Callable[[Measured, Measured], float]) -> float:
    return _median([compare(own, other) for own, other in zip(ours, theirs, strict=True)])


def metrics(results: Results) -> dict[str, float]:
    """The numbers by name. Ratios are medians of the rounds' ratios: ours to the peer's, above 1 when we are faster."""
    found: dict[str, float] = {}
    for contender, measured in results.items():
        suffix = "" if contender == OURS else f"_{contender}"
        for name, values in measured.items():
            if name == "paced_big":
                found[f"p50_ms{suffix}"] = round(_median([value.p50_ms for value in values]), 3)
                found[f"p99_ms{suffix}"] = round(_median([value.p99_ms for value in values]), 3)
                continue
            short = name.replace("calls_big_", "calls_")
            found[f"{short}_per_second{suffix}"] = round(_median([value.per_second for value in values]))
            cpu_name = short.replace("calls_", "call_cpu_us_").replace("casts_", "cast_cpu_us_")
            found[f"{cpu_name}{suffix}"] = round(_median([value.cpu_us for value in values]), 2)
    ours = results[OURS]
    for contender, measured in results.items():
        if contender in (OURS, PLAIN):
            continue
        for name, values in measured.items():
            if name != "paced_big":
                short = name.replace("calls_big_", "calls_")
                ratio = _paired(ours[name], values, lambda own, other: own.per_second / other.per_second)
                found[f"{short}_ratio_{contender}"] = round(ratio, 2)
    if PLAIN in results:
        plain = results[PLAIN]["calls_big_64"]
        cost = _paired(ours["calls_big_64"], plain, lambda own, other: own.cpu_us / other.cpu_us)
        found["curve_cost_ratio"] = round(cost, 2)
    if RAW in results:
        over = _paired(ours["paced_big"], results[RAW]["paced_big"], lambda own, other: own.p99_ms - other.p99_ms)
        found["p99_over_raw_ms"] = round(over, 3)
    return found


def curve_keys() -> str:
    """Keys for both of our ends, as JSON."""
    server_public, server_secret = (key.decode() for key in zmq.curve_keypair())
    client_public, client_secret = (key.decode() for key in zmq.curve_keypair())
    keys = {
        "server_public": server_public,
        "server_secret": server_secret,
        "client_public": client_public,
        "client_secret": client_secret,
    }
    return msgspec.json.encode(keys).decode()
