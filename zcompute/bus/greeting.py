"""Who a hello or welcome says its sender is."""

from zcompute.bus.envelope import PROTOCOL_MAJOR, Hello, Welcome, decode_attributes
from zcompute.bus.errors import UnsupportedVersion
from zcompute.bus.identity import Peer
from zcompute.bus.limits import Limits


def peer_of(greeting: Hello | Welcome, key_name: str, limits: Limits) -> Peer:
    """The peer that a hello or welcome describes. Raises UnsupportedVersion, FrameRefused."""
    if greeting.protocol_major != PROTOCOL_MAJOR:
        raise UnsupportedVersion(
            f"expected protocol {PROTOCOL_MAJOR}, found {greeting.protocol_major}.{greeting.protocol_minor}",
            interface="protocol",
            wanted=[greeting.protocol_major, greeting.protocol_minor],
        )
    return Peer(
        role=greeting.role,
        cell=greeting.cell,
        service_id=greeting.service_id,
        incarnation=greeting.incarnation,
        release=greeting.release,
        hosts=frozenset(greeting.hosts),
        key_name=key_name,
        interfaces=greeting.interfaces,
        attributes=decode_attributes(greeting.attributes, limits),
        topics=frozenset(greeting.topics),
    )
