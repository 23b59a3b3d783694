"""Deciding on tokens and on the keys that they let in. Pure."""

import re
from collections.abc import Iterable

from msgspec.structs import replace

from zcompute.bus import KeyEntry
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.change import Change
from zcompute.conductor.enrolment.settings import EnrolmentLimits
from zcompute.db.tables import ENROLMENTS
from zcompute.objects.enrolment import EnrolledKey, Enrolment
from zcompute.objects.errors import EnrolmentRefused
from zcompute.objects.messages.topology import EnrolmentCreateRequest, EnrolmentReply, EnrolRequest

COUNTER_ID = ""  # the row that is changed with every other, so that one read by key shows whether anything is new
ENROLLING = "enrolling"
TOKEN_NAME = "token:"  # before a token's id: the name of its key
Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def refused(reason: str, text: str) -> EnrolmentRefused:
    """The refusal that both sides know."""
    return EnrolmentRefused(text, reason=reason)


def check_create(request: EnrolmentCreateRequest, limits: EnrolmentLimits) -> None:
    """Raises InvalidRequest for what could never be let in."""
    if not NAME.fullmatch(request.id) or len(request.id) > 64 or not Z85_KEY.fullmatch(request.token_key):
        raise InvalidRequest("expected an id of at most 64 characters and a public key of z85", field="token_key")
    if not 1 <= request.uses_max <= limits.uses_max or not 1 <= request.lifetime_s <= limits.lifetime_s_max:
        raise InvalidRequest(
            f"expected 1 to {limits.uses_max} uses within {limits.lifetime_s_max} s at most, "
            f"found {request.uses_max} within {request.lifetime_s}",
            field="uses_max",
        )
    if (request.role == "compute") != bool(request.hosts) or len(request.hosts) > limits.hosts_max:
        raise InvalidRequest(f"a compute names its hosts, {limits.hosts_max} at most; others have none", field="hosts")


def create_enrolment(change: Change, request: EnrolmentCreateRequest, created_by: str) -> EnrolmentReply:
    """A token's row. A repeat changes nothing; another token under the same id is refused."""
    former = change.get(ENROLMENTS, (request.id,))
    if former is not None:
        if former.token_key != request.token_key:
            raise refused("foreign", f"a token with id {request.id} is there already: choose another id")
        return EnrolmentReply(enrolment=former)
    made = Enrolment(
        id=request.id,
        token_key=request.token_key,
        role=request.role,
        cell=request.cell,
        hosts=sorted(set(request.hosts)),
        uses_max=request.uses_max,
        expires_at_us=change.now_us + request.lifetime_s * 1_000_000,
        created_at_us=change.now_us,
        created_by=created_by,
    )
    return EnrolmentReply(enrolment=made, changed=True)


def revoke_enrolment(change: Change, enrolment_id: str) -> EnrolmentReply:
    """Neither the token nor the keys that it let in count any more. A repeat changes nothing."""
    former = change.get(ENROLMENTS, (enrolment_id,))
    if former is None or enrolment_id == COUNTER_ID:
        raise refused("unknown", f"there is no token with id {enrolment_id}")
    return EnrolmentReply(enrolment=replace(former, revoked=True), changed=not former.revoked)


def enrol(change: Change, enrolment_id: str, request: EnrolRequest) -> EnrolmentReply:
    """One more key, in one of the token's uses. A repeat with the same key changes nothing, also after the last use
    and the end. Raises EnrolmentRefused."""
    row = change.get(ENROLMENTS, (enrolment_id,))
    if row is None or enrolment_id == COUNTER_ID:
        raise refused("unknown", f"there is no token with id {enrolment_id}")
    if row.revoked:
        raise refused("revoked", f"token {row.id} was revoked: ask for another")
    if any((key.service_id, key.public_key) == (request.service_id, request.public_key) for key in row.enrolled):
        return EnrolmentReply(enrolment=row)
    if change.now_us >= row.expires_at_us:
        raise refused("expired", f"token {row.id} has expired: ask for another")
    if len(row.enrolled) >= row.uses_max:
        raise refused("used", f"token {row.id} was used {row.uses_max} times, as often as it may: ask for another")
    key = EnrolledKey(service_id=request.service_id, public_key=request.public_key, enrolled_at_us=change.now_us)
    return EnrolmentReply(enrolment=replace(row, enrolled=[*row.enrolled, key]), changed=True)


def put_enrolments(change: Change, rows: Iterable[Enrolment]) -> None:
    """Write rows, and that something has changed."""
    counter = change.get(ENROLMENTS, (COUNTER_ID,)) or Enrolment(id=COUNTER_ID, uses_max=0)
    for row in rows:
        change.put(ENROLMENTS, row)
    change.put(ENROLMENTS, replace(counter, uses_max=counter.uses_max + 1))


def entries_of(rows: Iterable[Enrolment], now_us: int, explained_us: int) -> tuple[list[KeyEntry], int | None]:
    """The keys that these rows let in now, and when the first of them ends (None: never).

    A token's own key is let in for ``explained_us`` longer than it counts: whoever comes too late is told so.
    """
    entries: list[KeyEntry] = []
    ends: list[int] = []
    for row in rows:
        if row.revoked or row.id == COUNTER_ID:
            continue
        end_us = row.expires_at_us + explained_us
        if now_us < end_us:
            ends.append(end_us)
            entries.append(KeyEntry(TOKEN_NAME + row.id, row.token_key, ENROLLING, row.cell))
        entries += [
            KeyEntry(key.service_id, key.public_key, row.role, row.cell, frozenset(row.hosts)) for key in row.enrolled
        ]
    return entries, min(ends, default=None)
