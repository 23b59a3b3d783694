from types import SimpleNamespace

from tests.unit.conductor.ledger_world import wait_for
from tests.unit.conductor.tasks.samples import TASK, new_build
from zcompute.conductor.tasks import forgetting
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.objects.errors import HostNotFound


def test_a_host_that_answers_oddly_keeps_no_other_from_being_told(monkeypatch):
    monkeypatch.setattr(forgetting, "TICK_S", 0.001)
    told = []

    def send(host, method, request, *, timeout_ms):
        if host == "h1":
            raise HostNotFound("not mine", host=host)
        told.append(host)

    env = SimpleNamespace(
        settings=TaskSettings(command_ms_max=1),
        ledger=SimpleNamespace(owner_epoch=lambda _: 1),
        commands=SimpleNamespace(send=send),
    )
    queue = forgetting.Forgetting(env)
    queue.add(new_build()[0], TASK, ["h1", "h2"])
    queue.start()
    wait_for(lambda: told == ["h2"])
    queue.stop()
