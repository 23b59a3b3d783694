"""``zcompute server migrate``: move a server to another cell, as a task of the root."""

import json
import time
from uuid import uuid4

import click
import gevent

from zcompute.cli.cell_commands import TIMEOUT_MS, ask, open_operator, operator_options
from zcompute.cli.exits import MORE_LEFT
from zcompute.cli.listings import server
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.cross_move import CROSS_RUNNING, CrossMove
from zcompute.objects.messages.crossing import CrossMoveGetRequest, CrossMoveReply, CrossMoveRequest
from zcompute.objects.methods import MAPPING_MOVE, MAPPING_MOVED

__all__ = ["server"]

POLL_S = 0.5


@server.command()
@click.argument("uuid", metavar="SERVER")
@click.option("--to-cell", "target", required=True, metavar="CELL", help="The cell that it is to be in.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=None, metavar="SECONDS", help="Until it ended.")
@click.option("--operation", default=None, metavar="UUID", help="Ask again for the same move: nothing more is begun.")
@operator_options
def migrate(
    uuid: str,
    target: str,
    wait_s: float | None,
    operation: str | None,
    config_path: str | None,
    state_dir: str,
    form: str,
) -> None:
    """Move a server to another cell, stopped while its data go there; `zcompute task show SERVER` says how far it is.

    Exit codes: 0 accepted (with --wait: done), 9 it has not ended when the time is over, 1 refused, rolled back, or
    not reached.
    """
    request = CrossMoveRequest(uuid=uuid, target_cell=target, operation_id=operation or str(uuid4()))
    with open_operator(config_path, state_dir, TIMEOUT_MS + int((wait_s or 0) * 1000)) as operator:
        reply: CrossMoveReply = ask(operator, ROOT_CELL, MAPPING_MOVE, request)
        move, until = reply.move, time.monotonic() + (wait_s or 0)
        while move.state == CROSS_RUNNING and time.monotonic() < until:
            gevent.sleep(min(POLL_S, max(0.0, until - time.monotonic())))
            reply = ask(operator, ROOT_CELL, MAPPING_MOVED, CrossMoveGetRequest(uuid=uuid))
            move = reply.move
    _say(move, form)
    if wait_s is not None and move.state == CROSS_RUNNING:
        raise click.exceptions.Exit(MORE_LEFT)
    if move.state != CROSS_RUNNING and move.body.result:
        raise click.exceptions.Exit(1)


def _say(move: CrossMove, form: str) -> None:
    result = move.body.result or ("" if move.state == CROSS_RUNNING else "done")
    if form == "json":
        document = {
            "server": move.uuid, "task": move.operation_id, "from": move.source_cell, "to": move.target_cell,
            "state": move.state, "step": move.step, "result": result,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    where = f"in step {move.step}" if move.state == CROSS_RUNNING else result
    click.echo(f"move {move.operation_id} of server {move.uuid} from {move.source_cell} to {move.target_cell}: {where}")
