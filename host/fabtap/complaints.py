"""How is refused input counted without flooding the log? All is counted; the log hears of each kind at most once a minute."""
import logging
import time
from collections.abc import Callable, Mapping

SILENCE_S = 60.0


class Complaints:
    """Counts by name for one port. `log` gets the first of a kind, then one line a minute with how many came since."""

    def __init__(self, port: str, log: logging.Logger, now_s: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._log = log
        self._now_s = now_s
        self._counts: dict[str, int] = {}
        self._told: dict[str, tuple[float, int]] = {}

    def note(self, name: str, detail: str = "", count: int = 1) -> None:
        """Count something refused."""
        self._counts[name] = self._counts.get(name, 0) + count
        at_s, untold = self._told.get(name, (float("-inf"), 0))
        untold += count
        if self._now_s() - at_s >= SILENCE_S:
            self._log.warning("%s: %s, %d time(s) %s", self._port, name, untold, detail)
            at_s, untold = self._now_s(), 0
        self._told[name] = (at_s, untold)

    def take(self) -> dict[str, int]:
        """What was counted since the last call."""
        counts, self._counts = self._counts, {}
        return counts

    def give_back(self, counts: Mapping[str, int]) -> None:
        """What was taken could not be stored: it is counted again at the next call of `take`."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
