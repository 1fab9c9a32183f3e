"""Does the page say what the floor says, only to this computer, and does it end when it is told to?"""
import asyncio
import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fabtap import web
from fabtap.floor import WORDS, Floor
from fabtap.problem import Problem
from tests.host.test_floor import Told

START_S = 10.0


class Served:
    """A floor page in a loop of its own. The floor is touched only inside that loop, by `call`."""

    def __init__(self, floor: Floor, lab_name: str) -> None:
        self.port = 0
        self.ended_s = -1.0
        self._floor = floor
        self._lab_name = lab_name
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(START_S)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(web.serve_floor(self._floor, self._lab_name, 0, self._started))
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _started(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def call(self, what: Any, *values: Any, **named: Any) -> Any:
        async def carried_out() -> Any:
            return what(*values, **named)
        return asyncio.run_coroutine_threadsafe(carried_out(), self._loop).result(START_S)

    def freeze(self, seconds: float) -> None:
        """The loop does nothing for so long, and the sockets stay open; does not wait for it."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)

    def end(self) -> None:
        begun_s = time.monotonic()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(START_S)
        assert not self._thread.is_alive()
        self.ended_s = time.monotonic() - begun_s


@contextlib.contextmanager
def served(floor: Floor, lab_name: str = "Lab <of> all") -> Iterator[Served]:
    """The floor's page on a free port; ended afterwards."""
    page = Served(floor, lab_name)
    try:
        yield page
    finally:
        page.end()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def page(told: Told) -> Iterator[Served]:
    with served(told.floor) as made:
        yield made


def get(page: Served, path: str, host: str = "localhost") -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=START_S)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    return answer, answer.read().decode()


class Stream:
    """One browser's stream: the snapshots as they come."""

    def __init__(self, page: Served) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=START_S)
        connection.request("GET", "/stream")
        self.answer = connection.getresponse()

    def states(self) -> list[str]:
        """The states in the next snapshot; [] at the stream's end."""
        for line in iter(self.answer.readline, b""):
            if line.startswith(b"data: "):
                return [card["state"] for card in json.loads(line[6:])["cards"]]
        return []


def test_the_page_is_whole_without_a_script(told: Told, page: Served) -> None:
    page.call(told.status, "session", watts=1240, state_ms=125_000)
    answer, text = get(page, "/")
    assert answer.status == 200
    assert "<h2>Laser cutter</h2>" in text and ">In use</b>" in text and ">1,240</b>" in text and ">2 min</time>" in text
    assert '<noscript><meta http-equiv="refresh"' in text
    assert "Lab &lt;of&gt; all" in text and "<of>" not in text
    assert "{{" not in text and "{%" not in text


def test_every_state_has_a_symbol(page: Served) -> None:
    _, text = get(page, "/")
    assert set(re.findall(r'<symbol id="(\w+)"', text)) == {*WORDS, "unknown"}


def test_the_same_as_json(told: Told, page: Served) -> None:
    page.call(told.status, "idle", state_ms=5000)
    answer, text = get(page, "/floor.json")
    found = json.loads(text)
    assert found["summary"] == "1 of 1 free"
    assert found["cards"][0] == {"id": "laser", "name": "Laser cutter", "observed": False, "state": "free", "word": "Free",
                                 "detail": "", "age": "5 s", "since": "2027-01-15T08:16:35+00:00", "watts": "0"}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.10", ""])
@pytest.mark.parametrize("path", ["/", "/floor.json", "/stream"])
def test_another_host_name_gets_nothing(page: Served, host: str, path: str) -> None:
    answer, text = get(page, path, host)
    assert answer.status == 400 and "Laser" not in text and answer.getheader("Content-Security-Policy")


@pytest.mark.parametrize("path", ["/", "/floor.json", "/floor.css", "/floor.js", "/icon.svg", "/nothing"])
def test_every_answer_has_the_headers_and_no_script_stands_in_the_page(page: Served, path: str) -> None:
    answer, text = get(page, path, f"127.0.0.1:{page.port}")
    assert answer.status == (404 if path == "/nothing" else 200)
    for name, value in web.HEADERS.items():
        assert answer.getheader(name) == value
    assert answer.getheader("Server") is None
    if path == "/":
        assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", text)
    assert not re.search(r"(src|href|url)\W{1,3}(https?:)?//", text)


def test_files_outside_are_out_of_reach(page: Served) -> None:
    for path in ("/floor.html", "/..%2fweb.py", "/%2e%2e/web.py", "/../web.py"):
        assert get(page, path)[0].status == 404


def test_the_stream_tells_a_change_at_once(told: Told, page: Served) -> None:
    page.call(told.status, "idle")
    stream = Stream(page)
    assert stream.answer.getheader("Content-Type", "").startswith("text/event-stream")
    assert stream.states() == ["free"]
    begun_s = time.monotonic()
    page.call(told.wait, 0.1)
    page.call(told.event, "session_started")
    assert stream.states() == ["in_use"]
    assert time.monotonic() - begun_s < web.LOOK_S / 2


def test_the_stream_tells_silence_though_nobody_speaks(told: Told, page: Served) -> None:
    page.call(told.status, "idle")
    stream = Stream(page)
    assert stream.states() == ["free"]
    page.call(told.wait, 16)
    assert stream.states() == ["silent"]


def test_the_stream_shows_that_it_is_alive(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ALIVE_S", 0.1)
    monkeypatch.setattr(web, "LOOK_S", 0.1)
    stream = Stream(page)
    assert [stream.states() for _ in range(3)] == [["unheard"]] * 3


def test_a_slow_browser_misses_states_and_costs_no_memory(told: Told, page: Served) -> None:
    """It gets what is true when it looks, not the thousand states before."""
    stream = Stream(page)
    assert stream.states() == ["unheard"]

    def many() -> None:
        for number in range(1000):
            told.wait(0.01)
            told.status("session" if number % 2 else "refused")

    page.call(many)
    assert stream.states() == ["in_use"]
    assert page.call(lambda: len(told.floor._watchers)) == 1


def test_a_browser_that_leaves_is_forgotten(told: Told, page: Served) -> None:
    stream = Stream(page)
    stream.states()
    stream.answer.close()
    deadline_s = time.monotonic() + START_S
    while page.call(lambda: len(told.floor._watchers)):
        assert time.monotonic() < deadline_s
        page.call(told.wait, 1)
        time.sleep(0.05)


def test_too_many_streams_are_refused_until_one_leaves(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "STREAMS_MAX", 1)
    monkeypatch.setattr(web, "ALIVE_S", 0.1)
    monkeypatch.setattr(web, "LOOK_S", 0.1)
    stream = Stream(page)
    assert stream.states()
    assert Stream(page).answer.status == 503
    stream.answer.close()
    deadline_s = time.monotonic() + START_S
    while Stream(page).answer.status != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_cancelled_with_open_streams_it_ends_at_once(told: Told) -> None:
    with served(told.floor) as page:
        streams = [Stream(page) for _ in range(3)]
        assert all(stream.states() for stream in streams)
        page.end()
        assert page.ended_s < web.ENDING_S
        assert [stream.states() for stream in streams] == [[], [], []]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", page.port), 1)


def test_a_port_that_is_taken_is_named_with_its_mend(told: Told) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Problem, match=f"port {port} .*another port under \\[floor\\]"):
            asyncio.run(web.serve_floor(told.floor, "Lab", port))


def test_it_listens_on_this_computer_only() -> None:
    with web.listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_it_leaves_the_signals_alone(told: Told) -> None:
    import signal
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def short() -> list[Any]:
        serving = asyncio.create_task(web.serve_floor(told.floor, "Lab", 0))
        await asyncio.sleep(0.1)
        found = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return found

    # asyncio.run has its own SIGINT handler in the main thread, so a bare loop it is.
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(short()) == before
    finally:
        loop.close()


@pytest.mark.parametrize(("age_s", "text"), [
    (None, ""), (0, "just now"), (1.99, "just now"), (2, "2 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"),
    (3600, "1 h 00 min"), (11_100, "3 h 05 min"), (172_799, "47 h 59 min"), (172_800, "2 d"), (10**7, "115 d")])
def test_ages(age_s: float | None, text: str) -> None:
    assert web.age_text(age_s) == text


@pytest.mark.parametrize(("power_mw", "text"), [
    (None, "–"), (0, "0"), (49, "0"), (50, "0"), (100, "0.1"), (4200, "4.2"), (9949, "9.9"), (9960, "10"), (9999, "10"),
    (12_600, "13"), (1_240_000, "1,240")])
def test_watts(power_mw: int | None, text: str) -> None:
    assert web.watts_text(power_mw) == text
