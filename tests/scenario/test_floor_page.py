"""Does the page on the wall show what happens on the floor, and say so when it no longer knows?

In headless Chromium (Debian's), with a simulated board and a real collector. The README's pictures are taken anew by
`FABTAP_PICTURES=docs .venv/bin/pytest tests/scenario/test_floor_page.py -k pictures`.
"""
import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabtap.floor import SILENT_S, WORDS, Floor
from nodecore import wire
from nodecore.access import STATE_NUMBERS
from tests.host.test_floor import Told, machine
from tests.host.test_web import served
from tests.rig import ADA, BO, Rig
from tests.scenario.steps import leave, ready, work

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Without these it asks Google's hosts at every start; --no-sandbox because tests may run as root.
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                  "--disable-component-update", "--disable-sync"]
TAP_TO_CARD_S = 1.0
SEEN_S = 20.0
FROZEN_S = 13.0
CONTRAST_MIN = 4.5
PICTURE_BYTES_MAX = 150_000
WIDE = {"width": 1280, "height": 620}

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser with a profile of its own."""
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page; an error in its script, or one that the security policy has stopped, fails the test."""
    made = browser.new_page()
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    yield made
    made.close()
    assert faults == []


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def open_floor(rig: Rig, tab: Any) -> None:
    """The lab serves its floor, the collector runs, and the browser shows the page, live."""
    port = free_port()
    with open(rig.lab_file, "a", encoding="utf-8") as file:
        file.write(f"\n[floor]\nport = {port}\n")
    ready(rig)
    tab.goto(f"http://localhost:{port}/")
    tab.wait_for_selector("[data-link=live]", timeout=SEEN_S * 1000)


def see(tab: Any, state: str, timeout_s: float = SEEN_S) -> str:
    """The card's words as soon as the laser is in that state."""
    card = tab.wait_for_selector(f"[data-id=laser][data-state={state}]", timeout=timeout_s * 1000)
    return card.inner_text()


def test_a_tap_changes_the_card_within_a_second(rig: Rig, tab: Any, record_property: Any,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    open_floor(rig, tab)
    see(tab, "free")
    taken_s = []
    for _ in range(3):
        begun_s = time.monotonic()
        rig.ask("tap", uid=ADA)
        assert "In use" in see(tab, "in_use")
        taken_s.append(time.monotonic() - begun_s)
        leave(rig)
        assert "Free" in see(tab, "free")
        rig.pause(0.5)
    record_property("tap_to_card_s", taken_s)
    with capsys.disabled():
        print(f"tap to card: {', '.join(f'{taken * 1000:.0f}' for taken in taken_s)} ms", end=" ")
    assert max(taken_s) < TAP_TO_CARD_S


def test_watts_denials_and_stops_reach_the_card(rig: Rig, tab: Any) -> None:
    open_floor(rig, tab)
    rig.ask("tap", uid=BO)
    assert "No training for this machine" in see(tab, "refused")
    rig.ask("remove")
    see(tab, "free")
    rig.pause(0.5)
    rig.ask("tap", uid=ADA)
    see(tab, "in_use")
    work(rig, (640, 0))
    rig.wait_for(lambda: float(tab.inner_text(".watts")) > 600, SEEN_S, "the watts on the card")
    rig.ask("press")
    assert "Stop was pressed" in see(tab, "stopped")
    rig.ask("remove")
    see(tab, "free")


def test_a_node_without_mains_is_silent_and_not_free(rig: Rig, tab: Any) -> None:
    open_floor(rig, tab)
    see(tab, "free")
    rig.ask("power", on=False)
    begun_s = time.monotonic()
    words = see(tab, "silent", SILENT_S + 6)
    assert "Free" not in words and "may be in use" in words
    assert time.monotonic() - begun_s > SILENT_S - 6
    assert "0 of 1 free" in tab.inner_text("body")
    rig.ask("power", on=True)
    see(tab, "free")


@pytest.mark.parametrize("how", ["stop_collector", "kill_collector"])
def test_without_the_collector_no_card_stays_green(rig: Rig, tab: Any, how: str) -> None:
    open_floor(rig, tab)
    see(tab, "free")
    assert not tab.is_visible(".lost")
    getattr(rig, how)()
    see(tab, "unknown", 3)
    assert "Connection lost" in tab.inner_text("body") and "free" not in tab.inner_text("body").lower()
    assert tab.title() == "Connection lost"
    rig.start_collector()
    see(tab, "free")
    assert not tab.is_visible(".lost")


def test_a_frozen_collector_is_noticed(tab: Any) -> None:
    """Its sockets stay open, so nothing but its silence tells."""
    told = Told()
    with served(told.floor) as page:
        tab.goto(f"http://localhost:{page.port}/")
        page.call(told.status, "idle")
        see(tab, "free")
        page.freeze(FROZEN_S)
        see(tab, "unknown", FROZEN_S - 1)
        see(tab, "free")


def test_without_a_script_the_page_is_whole(browser: Any) -> None:
    told = Told()
    with served(told.floor) as page:
        page.call(told.status, "session", watts=1240, state_ms=125_000)
        context = browser.new_context(java_script_enabled=False)
        tab = context.new_page()
        tab.goto(f"http://localhost:{page.port}/")
        words = tab.inner_text("body")
        assert "In use" in words and "1,240" in words and "2 min" in words and "as of" in words
        assert not tab.is_visible(".lost")
        context.close()


CONTRASTS = """(states) => {
  const light = (rgb) => rgb.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const ratio = (ink, ground) => {
    const [dark, bright] = [light(ink), light(ground)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const style = (place) => getComputedStyle(document.querySelector(place));
  const found = {};
  for (const state of states) {
    document.querySelector(".card").dataset.state = state;
    found[state] = ratio(style(".word").color, style(".state").backgroundColor);
  }
  for (const place of [".watts", ".power", ".age", ".detail", "h2"])
    found[place] = ratio(style(place).color, style(".card").backgroundColor);
  for (const place of ["h1", ".summary", ".link"]) found[place] = ratio(style(place).color, style("body").backgroundColor);
  found[".lost"] = ratio(style(".lost").color, style(".lost").backgroundColor);
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(tab: Any, scheme: str) -> None:
    """WCAG AA for small text, though most of it is large. A state's colour has a rule of its own: only what is unknown is grey."""
    told = Told()
    with served(told.floor) as page:
        tab.emulate_media(color_scheme=scheme)
        tab.goto(f"http://localhost:{page.port}/")
        found = tab.evaluate(CONTRASTS, [*WORDS, "unknown"])
        assert {place: ratio for place, ratio in found.items() if ratio < CONTRAST_MIN} == {}
        assert len(found) == len(WORDS) + 1 + 9


@pytest.mark.parametrize("width", [320, 768, 1280, 3840])
def test_nothing_is_cut_off(tab: Any, width: int) -> None:
    with a_lively_floor() as port:
        tab.set_viewport_size({"width": width, "height": 900})
        tab.goto(f"http://localhost:{port}/")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        cut = tab.evaluate("[...document.querySelectorAll('.card *')].filter((e) => e.scrollWidth > e.clientWidth + 1 && "
                           "e.clientWidth).map((e) => e.className)")
        assert cut == []


@contextlib.contextmanager
def a_lively_floor() -> Iterator[int]:
    """Five machines in five states, on a free port."""
    machines = (machine(), machine("sign", 2, shown="Sign cutter"), machine("mill", 3, shown="NC mill"),
                machine("router", 4, shown="Wood router"), machine("bench", 5, "observe", "Electronics bench"))
    clock_s = [0.0]
    floor = Floor(machines, now_s=lambda: clock_s[0] + time.monotonic())

    def status(place: int, state: str, watts: float, minutes: float) -> None:
        floor.note(machines[place], "status", {
            "boot": 1, "boot_nonce": 1, "mono_ms": 90_000_000 + round(clock_s[0] * 1000), "state": STATE_NUMBERS[state],
            "relay": int(state == "session"), "power_mw": round(watts * 1000), "state_ms": round(minutes * 60_000)})

    status(3, "session", 900, 20)
    clock_s[0] += 260
    status(0, "session", 1240, 12.2)
    status(1, "idle", 0, 185.2)
    status(2, "idle", 0, 3)
    status(4, "idle", 8.4, 47.5)
    denied = {"member": 0, "badge_hash": bytes(8), "reason": 2}
    floor.note(machines[2], "events", {"data": wire.pack_events([wire.encode_event("badge_denied", 1, 1, 90_260_050, denied)])})
    with served(floor, "Center for Community Production") as page:
        yield page.port


def take_pictures(browser: Any, folder: Path) -> list[Path]:
    """floor-light.png and floor-dark.png of the lively floor."""
    taken = []
    with a_lively_floor() as port:
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport=WIDE, color_scheme=scheme)
            tab.goto(f"http://localhost:{port}/")
            tab.wait_for_selector("[data-link=live]")
            taken.append(folder / f"floor-{scheme}.png")
            tab.screenshot(path=taken[-1], full_page=True)
            tab.close()
    return taken


def test_the_pictures_can_be_taken(browser: Any, tmp_path: Path) -> None:
    light, dark = take_pictures(browser, Path(os.environ.get("FABTAP_PICTURES") or tmp_path))
    assert light.read_bytes() != dark.read_bytes()
    assert all(10_000 < picture.stat().st_size < PICTURE_BYTES_MAX for picture in (light, dark))
