"""When, in UTC, did something happen that a node dated by its own clock?

A node counts milliseconds since its boot (`mono_ms`). An anchor ties one such moment to UTC, give or take an
uncertainty. PURE, and integers only.

- The estimate stands in the middle of its interval: the truth lies within `uncertainty_ms` of `utc_ms`, as long as the
  node's clock runs within DRIFT_PPM and the anchors keep their own promise.
- Between two anchors of one boot the clock's mean rate is known, so only its wobble counts: at most
  2 * drift * before * after / (before + after). Beyond them the drift grows with the distance.
- Anchors that contradict each other (somebody set the host's clock) widen the interval by the contradiction.
- A boot without an anchor has no estimate; the boots before and after it bound it.
"""
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

DRIFT_PPM = 100
MILLION = 1_000_000
ROUNDING_MS = 1


class Anchor(NamedTuple):
    """At `mono_ms` of `boot` it was `utc_ms`, give or take `uncertainty_ms`."""

    boot: int
    mono_ms: int
    utc_ms: int
    uncertainty_ms: int


class Instant(NamedTuple):
    """UTC in milliseconds: an estimate with its half-width, or None; then the interval's ends, None where unknown.

    `quality` is "interpolated", "extrapolated", "bounded" (no estimate, at least one end) or "unknown".
    """

    utc_ms: int | None
    uncertainty_ms: int | None
    quality: str
    earliest_utc_ms: int | None = None
    latest_utc_ms: int | None = None


class Timeline:
    """The anchors of one journal; `anchors` are (boot, mono_ms, utc_ms, uncertainty_ms) in any order."""

    def __init__(self, anchors: Iterable[tuple[int, int, int, int]]) -> None:
        best: dict[tuple[int, int], Anchor] = {}
        for row in anchors:
            anchor = Anchor(*row)
            known = best.get((anchor.boot, anchor.mono_ms))
            if known is None or anchor.uncertainty_ms < known.uncertainty_ms:
                best[anchor.boot, anchor.mono_ms] = anchor
        self._boots: dict[int, list[Anchor]] = {}
        for key in sorted(best):
            self._boots.setdefault(key[0], []).append(best[key])
        self._boot_numbers = sorted(self._boots)

    def at(self, boot: int, mono_ms: int) -> Instant:
        """The Instant of a moment of a boot."""
        anchors = self._boots.get(boot)
        if anchors is None:
            return self._bounded(boot, mono_ms)
        place = bisect_left(anchors, mono_ms, key=lambda anchor: anchor.mono_ms)
        if place == len(anchors):
            return _extrapolated(anchors[-1], mono_ms)
        if anchors[place].mono_ms == mono_ms:
            return _around(anchors[place].utc_ms, anchors[place].uncertainty_ms, "interpolated")
        if place == 0:
            return _extrapolated(anchors[0], mono_ms)
        return _interpolated(anchors[place - 1], anchors[place], mono_ms)

    def _bounded(self, boot: int, mono_ms: int) -> Instant:
        """After the last anchor of an earlier boot and this boot's own `mono_ms`; before a later boot began."""
        place = bisect_left(self._boot_numbers, boot)
        earliest = latest = None
        if place > 0:
            before = self._boots[self._boot_numbers[place - 1]][-1]
            earliest = before.utc_ms - before.uncertainty_ms + mono_ms - _drift_ms(mono_ms)
        if place < len(self._boot_numbers):
            after = self._boots[self._boot_numbers[place]][0]
            latest = after.utc_ms + after.uncertainty_ms - after.mono_ms + _drift_ms(after.mono_ms)
        quality = "unknown" if earliest is None and latest is None else "bounded"
        return Instant(None, None, quality, earliest, latest)


def _interpolated(before: Anchor, after: Anchor, mono_ms: int) -> Instant:
    since, until = mono_ms - before.mono_ms, after.mono_ms - mono_ms
    span = since + until
    utc_span = after.utc_ms - before.utc_ms
    wobble_ms = _up(2 * DRIFT_PPM * since * until, MILLION * span)
    own_ms = max(before.uncertainty_ms, after.uncertainty_ms)
    explained_ms = before.uncertainty_ms + after.uncertainty_ms + _drift_ms(span)
    contradiction_ms = max(0, abs(utc_span - span) - explained_ms)
    uncertainty_ms = own_ms + wobble_ms + contradiction_ms + ROUNDING_MS
    return _around(before.utc_ms + since * utc_span // span, uncertainty_ms, "interpolated")


def _extrapolated(anchor: Anchor, mono_ms: int) -> Instant:
    away_ms = mono_ms - anchor.mono_ms
    return _around(anchor.utc_ms + away_ms, anchor.uncertainty_ms + _drift_ms(abs(away_ms)), "extrapolated")


def _around(utc_ms: int, uncertainty_ms: int, quality: str) -> Instant:
    return Instant(utc_ms, uncertainty_ms, quality, utc_ms - uncertainty_ms, utc_ms + uncertainty_ms)


def _drift_ms(distance_ms: int) -> int:
    return _up(distance_ms * DRIFT_PPM, MILLION)


def _up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
