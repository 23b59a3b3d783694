"""In which cell a host is: asked of every cell that the root knows, before anything is done to the host."""

from zcompute.cli.cell_commands import dial_cells
from zcompute.cli.exits import CommandError
from zcompute.cli.operator import Operator
from zcompute.objects.cell import CELL_DELETED, ROOT_CELL
from zcompute.objects.errors import HostNotFound
from zcompute.objects.host import Host
from zcompute.objects.messages.topology import HostListReply, HostListRequest
from zcompute.objects.methods import HOST_LIST


def find_host(operator: Operator, name: str, cell: str | None) -> tuple[str, Host]:
    """The host's cell, and its row. With ``cell`` only that one is asked, and the root only for its conductors.

    Raises CommandError where no cell has it or several have; and without ``cell`` where one that may have it does not
    answer: the host that is meant may be that one's.
    """
    cells = [cell] if cell else _known(operator)
    if cell and cell not in operator.cells():
        _known(operator)
    found: list[tuple[str, Host]] = []
    silent: dict[str, str] = {}
    for asked in cells:
        try:
            reply: HostListReply = operator.ask_cell(asked, HOST_LIST, HostListRequest(name=name))
        except HostNotFound:
            continue
        except CommandError as error:
            silent[asked] = error.message
            continue
        found += [(asked, row) for row in reply.hosts]
    names = ", ".join(asked for asked, _ in found)
    if len(found) > 1:
        raise CommandError(f"cells {names} have a host {name}: name one with --cell")
    if silent:
        known = f"; cell {names} has one: name it with --cell" if found else ""
        raise CommandError(f"host {name} may be in a cell that does not answer: {'; '.join(silent.values())}{known}")
    if not found:
        raise CommandError(f"host {name} is not known in cells {', '.join(cells) or '(none is known)'}")
    return found[0]


def _known(operator: Operator) -> list[str]:
    """The cells with conductors, as the root knows them; those are dialled."""
    rows = dial_cells(operator)
    return [row.name for row in rows if row.name != ROOT_CELL and row.conductors and row.state != CELL_DELETED]
