"""Pages of several cells and of the root, merged into one: pure."""

from collections.abc import Iterable

from zcompute.api.views import as_asked_of_root, instance_of
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.instance import Instance


def merge_pages(pages: Iterable[Iterable[Instance]], pending: Iterable[BuildRequest], limit: int) -> list[Instance]:
    """The newest ``limit`` servers, newest first: (created_at_us desc, uuid desc), each once.

    A server that is in a cell and still a build request is shown as the cell has it, unless the build request is in
    error or of a later generation (the cell's row is then a left-over of a refusal). Of two cells the later
    generation counts. Each page holds the first ``limit`` of its source, so the result is the first ``limit`` of all.
    """
    chosen: dict[str, Instance] = {}
    for page in pages:
        for instance in page:
            known = chosen.get(instance.uuid)
            if known is None or instance.mapping_generation > known.mapping_generation:
                chosen[instance.uuid] = instance
    for build_request in pending:
        known = chosen.get(build_request.uuid)
        if known is None or build_request.state == BUILD_ERROR or build_request.generation > known.mapping_generation:
            chosen[build_request.uuid] = instance_of(build_request)
        else:
            chosen[build_request.uuid] = as_asked_of_root(known, build_request)
    newest_first = sorted(chosen.values(), key=_order, reverse=True)
    return newest_first[:limit]


def _order(instance: Instance) -> tuple[int, str]:
    return instance.created_at_us, instance.uuid
