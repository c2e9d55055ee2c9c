"""How the processes of a run find each other, and what a user reads where they cannot."""

from __future__ import annotations

import socket

import pytest

from benchmarks.ports import free_ports
from lavila.engine.distributed import RendezvousError, join


def test_a_port_that_another_program_has_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RendezvousError) as refused, join("cpu"):
            pass
    assert "\n" not in str(refused.value)
    assert f"127.0.0.1:{port}" in str(refused.value) and "EADDRINUSE" in str(refused.value)


def test_free_ports_differ_and_are_none_that_linux_gives_to_connections() -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        found = free_ports(50)
        assert len(set(found)) == 50 and taken.getsockname()[1] not in found
    assert all(20000 <= port < 32768 for port in found)
