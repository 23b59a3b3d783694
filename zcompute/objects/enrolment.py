"""Who may join: a token's public half, and the keys that it has let in."""

import msgspec

from zcompute.objects.base import VersionedObject


class EnrolledKey(VersionedObject):
    """A service's own key, let in by a token."""

    service_id: str
    public_key: str
    enrolled_at_us: int = 0


class Enrolment(VersionedObject):
    """A token and what became of it. The token itself is a CURVE secret key: only its public key is kept, from which
    the secret cannot be found.

    Whoever proves the secret may enrol ``uses_max`` keys of ``role`` for ``cell`` (and ``hosts``, a compute's) until
    ``expires_at_us``. ``revoked``: neither the token nor any of ``enrolled`` is let in. The row with id "" counts the
    changes of all others, in ``uses_max``.
    """

    id: str
    token_key: str = ""
    role: str = ""
    cell: str = ""
    hosts: list[str] = msgspec.field(default_factory=list)
    uses_max: int = 1
    expires_at_us: int = 0
    created_at_us: int = 0
    created_by: str = ""
    revoked: bool = False
    enrolled: list[EnrolledKey] = msgspec.field(default_factory=list)
    revision: int = 1
