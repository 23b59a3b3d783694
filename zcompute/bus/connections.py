"""What the kernel knows of a connection that belongs to libzmq, by its descriptor; and how to end one.

libzmq names the descriptor of a connection (ZMQ_SRCFD, the socket monitor) and closes it when it likes. So a descriptor
may be closed, or another connection's, at any moment: what is read here may be of another, and what ends a connection
makes sure first.
"""

import _socket  # the plain C type: gevent's makes descriptors its own
import fcntl
import os
import socket
import struct
import termios

from gevent import Timeout
from gevent.socket import create_connection

LAST_DATA_RECEIVED_AT = 52  # offset of tcpi_last_data_recv, milliseconds, in Linux' struct tcp_info
TCP_INFO_BYTES = 56


def silent_s(descriptor: int) -> float | None:
    """Seconds since bytes last came in, whoever has read them or not; None when it is no TCP connection any more.

    The kernel's own record: it is true however late our process looks.
    """
    try:
        borrowed = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    except (OSError, ValueError):
        return None
    try:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return None
    finally:
        borrowed.detach()
    return int(struct.unpack_from("=I", info, LAST_DATA_RECEIVED_AT)[0]) / 1000


def unread_bytes(descriptor: int) -> int:
    """Bytes that came in and were not read by libzmq yet; 0 when it is no connection any more."""
    try:
        found = fcntl.ioctl(descriptor, termios.FIONREAD, struct.pack("=i", 0))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("=i", found)[0])


def far_end(descriptor: int) -> str:
    """The other end's address, "" when it is no connection any more: tells one user of a descriptor from the next."""
    try:
        borrowed = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    except (OSError, ValueError):
        return ""
    try:
        return str(borrowed.getpeername())
    except OSError:
        return ""
    finally:
        borrowed.detach()


def cut(descriptor: int, other_end: str) -> bool:
    """Shut a connection down, as long as its other end is `other_end`; libzmq then sees its end, and the peer too.

    libzmq has no call for that. False when the descriptor is not that connection's any more.
    """
    try:
        own = os.dup(descriptor)  # holds the connection: whatever libzmq does meanwhile, it stays the one looked at
    except OSError:
        return False
    try:
        connection = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, own)
    except OSError:
        os.close(own)
        return False
    try:
        if not other_end or str(connection.getpeername()) != other_end:
            return False
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        connection.close()
    return True


def answers(address: str, timeout_s: float) -> bool:
    """Whether a listener's I/O thread greets a new connection within the time, whatever its hub is doing; waits.

    libzmq says the first bytes of ZMTP's greeting as soon as it has accepted. A stopped process accepts nothing, though
    its kernel does.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    greeted = False
    try:
        with Timeout(timeout_s, False), create_connection((host.strip("[]"), int(port))) as door:
            greeted = bool(door.recv(1))
    except (OSError, ValueError):
        greeted = False
    return greeted
