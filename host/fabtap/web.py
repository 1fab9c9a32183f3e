"""How does the floor get into a browser? A page and a stream of changes, on this computer only.

- The page listens on 127.0.0.1 and answers to no other name: a foreign page that makes its own name lead here gets nothing.
- The stream sends the whole floor whenever a word of it has changed, and every ALIVE_S anyway: a page that hears less has lost
  us and says so. It sends states, not changes: a slow browser misses some, and no memory is lost to it.
- The words are made here, once: the script only puts them into their places.
"""
import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fabtap.floor import Card, Floor
from fabtap.problem import Problem

ADDRESS = "127.0.0.1"
NAMES = ["localhost", "127.0.0.1"]
FILES = Path(__file__).parent / "web_files"
STATIC = {"floor.css": "text/css", "floor.js": "text/javascript", "icon.svg": "image/svg+xml"}
LOOK_S = 1.0
"""Silence comes without a message, and the minutes go by: so often a stream looks by itself."""
ALIVE_S = 4.0
GAP_S = 0.04
"""A journal told after an outage changes the floor a thousand times a second; nobody sees more than this."""
STREAMS_MAX = 50
ENDING_S = 1
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A page out of a cache would show yesterday's states.
    "Cache-Control": "no-store",
}


def age_text(age_s: float | None) -> str:
    """How long, in words that are short: "just now", "42 s", "12 min", "3 h 05 min", "2 d"; "" when it is not known."""
    if age_s is None:
        return ""
    minutes = int(age_s) // 60
    if age_s < 2:
        return "just now"
    if minutes < 1:
        return f"{int(age_s)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d"


def watts_text(power_mw: int | None) -> str:
    """Watts as a wall screen shows them: tenths below ten, a dash for no reading."""
    if power_mw is None:
        return "–"
    tenths = round(power_mw / 100)
    return f"{tenths / 10:.1f}" if 0 < tenths < 100 else f"{round(power_mw / 1000):,}"


def shown(card: Card) -> dict[str, Any]:
    """A card as the page takes it: words only."""
    since = "" if card.since_utc_s is None else datetime.fromtimestamp(round(card.since_utc_s), UTC).isoformat()
    return {"id": card.id, "name": card.name, "observed": card.observed, "state": card.state, "word": card.word,
            "detail": card.detail, "age": age_text(card.since_s), "since": since, "watts": watts_text(card.power_mw)}


class Page:
    """The floor page of one lab."""

    def __init__(self, floor: Floor, lab_name: str) -> None:
        self._floor = floor
        self._lab_name = lab_name
        self._streams: set[asyncio.Event] = set()
        self._ending = False
        self._template = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FILES), autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("floor.html")
        self._static = {name: (FILES / name).read_bytes() for name in STATIC}
        self.app = Starlette(
            routes=[Route("/", self._page), Route("/floor.json", self._json), Route("/stream", self._stream),
                    Route("/{name}", self._file)],
            middleware=[Middleware(_WithHeaders),
                        Middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)])

    def end(self) -> None:
        """End every stream now, and begin none any more."""
        self._ending = True
        for wake in self._streams:
            wake.set()

    def snapshot(self) -> dict[str, Any]:
        """The whole floor in the page's words."""
        cards = self._floor.cards()
        free = sum(card.state == "free" for card in cards)
        return {"lab": self._lab_name, "summary": f"{free} of {len(cards)} free", "cards": [shown(card) for card in cards]}

    async def _page(self, request: Request) -> Response:
        now = datetime.now(UTC).strftime("%H:%M:%S UTC")
        return HTMLResponse(self._template.render(self.snapshot(), now=now))

    async def _json(self, request: Request) -> Response:
        return JSONResponse({**self.snapshot(), "utc": datetime.now(UTC).isoformat(timespec="seconds")})

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("There is no such page. The floor is at /.\n", 404)
        return Response(self._static[name], media_type=STATIC[name])

    async def _stream(self, request: Request) -> Response:
        if self._ending or len(self._streams) >= STREAMS_MAX:
            return PlainTextResponse("Too many pages are open.\n", 503)
        return StreamingResponse(self._changes(), media_type="text/event-stream")

    async def _changes(self) -> AsyncIterator[str]:
        wake = asyncio.Event()
        self._streams.add(wake)
        stop = self._floor.watch(wake.set)
        clock_s = asyncio.get_running_loop().time
        try:
            yield "retry: 1000\n\n"
            sent, sent_s = "", 0.0
            while not self._ending:
                wake.clear()
                now = json.dumps(self.snapshot())
                if now != sent or clock_s() - sent_s >= ALIVE_S:
                    sent, sent_s = now, clock_s()
                    yield f"data: {now}\n\n"
                await asyncio.sleep(GAP_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await wake.wait()
        finally:
            stop()
            self._streams.discard(wake)


class _WithHeaders:
    """Every answer gets HEADERS, also a refusal."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class _Server(uvicorn.Server):
    """A server that is a guest in the collector's loop: the signals are the collector's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(port: int) -> socket.socket:
    """The socket that the page is served on. Raises Problem when the port is taken or not ours to take."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, port))
        listener.listen()
    except OSError as error:
        listener.close()
        what = f"the floor page can't be served on port {port} of {ADDRESS} ({error.strerror})"
        raise Problem("[floor] port", None, what, "End the program that has the port (another collector?), or write another "
                                                  "port under [floor] in fabtap.toml.") from None
    return listener


async def serve_floor(floor: Floor, lab_name: str, port: int, started: Callable[[int], None] = lambda port: None) -> None:
    """Serve the floor page on 127.0.0.1 until cancelled.

    Raises Problem when the port is taken. `started` is told the port as soon as browsers can connect; port 0 takes a free one.
    """
    listener = listen(port)
    page = Page(floor, lab_name)
    server = _Server(uvicorn.Config(page.app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
                                    server_header=False, timeout_graceful_shutdown=ENDING_S))
    serving = asyncio.create_task(server.serve([listener]))
    started(listener.getsockname()[1])
    try:
        await asyncio.shield(serving)
    finally:
        page.end()
        server.should_exit = True
        await serving
        listener.close()
