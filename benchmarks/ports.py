"""Ports of this machine for processes that benchmarks and tests start."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

from lavila.cluster.launch import FIRST_PORT, PORTS


def free_ports(count: int) -> list[int]:
    """`count` ports at which nothing listens, from those that Linux gives to no connection (see `launch`).

    So no program takes one in the seconds until it is used.
    """
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", FIRST_PORT + random.SystemRandom().randrange(PORTS)))
            except OSError:
                continue
            found.append(int(one.getsockname()[1]))
        return found
