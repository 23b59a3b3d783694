"""Locust brings zmq.green and a gevent of its own making: the bus works beside it, in its process and in its users."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
    import locust  # patches, and imports zmq.green
    import gevent, msgspec, zmq.green
    from locust.env import Environment
    from zcompute.bus import Endpoint, Identity
    from tests.unit.bus.conftest import ECHO, Ask, Answer

    server = Endpoint(Identity("conductor", "c1", "conductor-1", "1.0"))
    server.serve(ECHO, lambda ask, context: Answer(ask.text))
    link = Endpoint(Identity("compute", "c1", "compute-1", "1.0")).dial(server.bind("tcp://127.0.0.1:0"))
    assert link.wait_up(5000)

    # What locust's workers do: zmq.green sockets between greenlets of this process, while the bus works.
    context = zmq.green.Context()
    pull = context.socket(zmq.green.PULL)
    port = pull.bind_to_random_port("tcp://127.0.0.1", 20000, 25999)
    push = context.socket(zmq.green.PUSH)
    push.connect(f"tcp://127.0.0.1:{port}")
    got = gevent.spawn(lambda: [pull.recv() for _ in range(200)])

    class Caller(locust.User):
        wait_time = locust.constant(0)

        @locust.task
        def say(self):
            with self.environment.events.request.measure("bus", "echo.say"):
                assert link.call(ECHO, Ask("x"), timeout_ms=2000) == Answer("x")
            push.send(b"x")

    environment = Environment(user_classes=[Caller])
    runner = environment.create_local_runner()
    runner.start(5, spawn_rate=50)
    got.join(timeout=20)
    runner.quit()
    total = environment.stats.total
    assert got.successful() and total.num_failures == 0, (got.value, total.num_failures)
    print("calls", total.num_requests >= 200)
"""


def test_the_bus_works_in_a_locust_process(tmp_path: Path) -> None:
    script = tmp_path / "beside_locust.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(PROGRAM), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "calls True\n", done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
