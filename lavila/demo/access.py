"""Who may ask the demo's server, and what its answers let a browser do.

On a loopback address everybody at this machine may ask, under a name of this machine: a page elsewhere whose name leads
to 127.0.0.1 may not. On any other address a token is asked for, once: a cookie keeps it.
"""

from __future__ import annotations

import hmac
import html
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STYLE = "/assets/style.css"
COOKIE = "lavila_token"
COOKIE_SECONDS = 30 * 24 * 3600
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    # Nothing from elsewhere is loaded, nothing is sent elsewhere, and no other page may frame this one.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ASK = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Token</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/assets/style.css">
</head><body class="asks"><form class="ask" action="/"><h1>Ask your videos</h1>
<p>{why} The command that serves this page prints the token.</p>{kept}
<label for="token">Token</label><input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button>Open</button></form></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask."""

    token: str | None = None  # None = everybody at this machine
    hosts: Sequence[str] = LOOPBACK_NAMES  # names under which a server without a token answers


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests that may not ask, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that does not reach the app; None where it does."""
        if _is_from_another_site(request):
            return PlainTextResponse("another site asks for this", 403)
        if self._access.token is None:
            if request.url.hostname in self._access.hosts:
                return None
            return PlainTextResponse(f"this server answers as {' or '.join(self._access.hosts)}", 421)
        if request.url.path == STYLE:  # of the form; it says nothing about the videos
            return None
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/":
            return self._welcome(request) if self._is_right(given) else _ask(request, "That is not the token.")
        if self._is_right(request.cookies.get(COOKIE, "")):
            return None
        return _ask(request, "This page asks for a token.")

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._access.token or "").encode())

    def _welcome(self, request: Request) -> Response:
        """The same address without the token, so that a copied link does not hold it; the cookie does."""
        rest = _without_token(request)
        response = RedirectResponse(f"/?{urlencode(rest)}" if rest else "/", 303)
        response.set_cookie(
            COOKIE, self._access.token or "", max_age=COOKIE_SECONDS, httponly=True, samesite="strict", path="/"
        )
        return response


def _is_from_another_site(request: Request) -> bool:
    """Whether a page of another origin asks. A link from there to the page itself is allowed."""
    if request.headers.get("sec-fetch-site", "none") in {"none", "same-origin"}:
        return False
    return not (request.headers.get("sec-fetch-mode") == "navigate" and request.url.path == "/")


def _without_token(request: Request) -> list[tuple[str, str]]:
    return [(name, value) for name, value in request.query_params.multi_items() if name != "token"]


def _ask(request: Request, why: str) -> Response:
    """The form for the token; what else the address holds comes back with it."""
    kept = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in _without_token(request)
        if request.url.path == "/"
    )
    return HTMLResponse(ASK.format(why=why, kept=kept), 401)
