"""Listens for browsers, and says at which address."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from lavila.demo.access import LOOPBACK_NAMES, Access, is_loopback
from lavila.demo.library import Library
from lavila.demo.server import create_app
from lavila.errors import UserError

STOP_SECONDS = 2  # for which answers that are on their way may continue after Ctrl-C: a video may last for hours


class ServingError(UserError):
    """An address at which no server can listen."""


@dataclass(frozen=True, kw_only=True)
class Listening:
    """An open port."""

    socket: socket.socket
    host: str
    token: str | None  # None = everybody at this machine may ask

    @property
    def url(self) -> str:
        """The page's address, with the token where one is needed."""
        host = socket.gethostname() if self.host in {"0.0.0.0", "::"} else self.host
        place = f"[{host}]" if ":" in host else host
        return f"http://{place}:{self.socket.getsockname()[1]}/" + (f"?token={self.token}" if self.token else "")

    @property
    def access(self) -> Access:
        return Access(token=self.token, hosts=tuple(dict.fromkeys([*LOOPBACK_NAMES, self.host])))


def listen(host: str, port: int) -> Listening:
    """Open a port; 0 = any that is free. On an address that other machines reach there is a token.

    Raises ServingError where the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except (OSError, OverflowError) as error:
        opened.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            f"--host {host} --port {port}: cannot listen there ({why}); give an address of this machine, and a port "
            "that is free (0: any)"
        ) from None
    return Listening(socket=opened, host=host, token=None if is_loopback(host) else secrets.token_urlsafe(24))


def serve(library: Library, listening: Listening, *, ready: Callable[[str], None], browser: bool) -> None:
    """Answer until Ctrl-C. ready: hears the page's address. browser: open it there, if there is one."""
    app = create_app(library, listening.access)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_SECONDS)
    listening.socket.listen()  # from now on, who asks waits for the answer, and is not refused
    ready(listening.url)
    if browser:
        threading.Thread(target=webbrowser.open, args=(listening.url,), daemon=True).start()
    uvicorn.Server(config).run(sockets=[listening.socket])
