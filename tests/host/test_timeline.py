"""Does the timeline's interval hold the truth, and is it as narrow as its rules say?"""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabtap import timeline
from fabtap.timeline import Instant, Timeline

UTC = 1_800_000_000_000


def test_at_an_anchor() -> None:
    assert Timeline([(1, 500, UTC, 7)]).at(1, 500) == Instant(UTC, 7, "interpolated", UTC - 7, UTC + 7)


def test_between_two_anchors() -> None:
    line = Timeline([(1, 20_000, UTC + 20_000, 9), (1, 0, UTC, 5), (1, 90_000, UTC, 1)])
    assert line.at(1, 5_000) == Instant(UTC + 5_000, 9 + 1 + 1, "interpolated", UTC + 4_989, UTC + 5_011)


def test_a_fast_clock_is_followed() -> None:
    line = Timeline([(1, 0, UTC, 0), (1, 10_000_000, UTC + 9_999_000, 0)])
    assert line.at(1, 5_000_000).utc_ms == UTC + 4_999_500


def test_beyond_the_anchors_the_drift_grows() -> None:
    line = Timeline([(1, 1_000, UTC, 5), (1, 2_000, UTC + 1_000, 3)])
    assert line.at(1, 0) == Instant(UTC - 1_000, 6, "extrapolated", UTC - 1_006, UTC - 994)
    late = line.at(1, 2_000 + 3_600_000)
    assert (late.utc_ms, late.uncertainty_ms, late.quality) == (UTC + 3_601_000, 3 + 360, "extrapolated")


def test_of_two_anchors_for_one_moment_the_more_certain_counts() -> None:
    assert Timeline([(1, 0, UTC, 50), (1, 0, UTC + 9, 2), (1, 0, UTC, 3)]).at(1, 0).utc_ms == UTC + 9


def test_a_host_clock_that_was_set_widens_the_interval() -> None:
    line = Timeline([(1, 0, UTC, 5), (1, 10_000, UTC - 3_590_000, 5)])
    instant = line.at(1, 5_000)
    assert instant.uncertainty_ms is not None and instant.uncertainty_ms > 3_590_000


def test_a_boot_without_an_anchor_is_bounded_by_its_neighbours() -> None:
    line = Timeline([(1, 1_000, UTC, 5), (4, 60_000, UTC + 900_000, 10), (4, 70_000, UTC + 910_000, 1)])
    assert line.at(2, 30_000) == Instant(None, None, "bounded", UTC - 5 + 30_000 - 3, UTC + 840_000 + 10 + 6)
    assert line.at(0, 5) == Instant(None, None, "bounded", None, UTC - 1_000 + 5 + 1)
    assert line.at(9, 0) == Instant(None, None, "bounded", UTC + 910_000 - 1, None)


def test_no_anchor_at_all() -> None:
    assert Timeline([]).at(1, 5) == Instant(None, None, "unknown")


# A clock's rate in parts a million, piece by piece of a second of the node's own time.
rates = st.lists(st.integers(-timeline.DRIFT_PPM, timeline.DRIFT_PPM), min_size=4, max_size=40)
PIECE_MS = 1_000_000


def truth_ms(rates_ppm: list[int], mono_ms: int) -> float:
    whole, rest = divmod(mono_ms, PIECE_MS)
    elapsed = sum(PIECE_MS + rate_ppm for rate_ppm in rates_ppm[:whole])
    return UTC + elapsed + (rest * (1 + rates_ppm[whole] / 1e6) if rest else 0)


def check_truth(rates_ppm: list[int], moments: list[int], errors: list[int], asked: int) -> None:
    anchors = []
    for mono_ms, error_ms in zip(moments, errors, strict=True):
        anchors.append((1, mono_ms, round(truth_ms(rates_ppm, mono_ms)) + error_ms, abs(error_ms) + 1))
    instant = Timeline(anchors).at(1, asked)
    assert instant.earliest_utc_ms is not None and instant.latest_utc_ms is not None
    assert instant.earliest_utc_ms <= truth_ms(rates_ppm, asked) <= instant.latest_utc_ms


@pytest.mark.prove
@given(st.data())
def test_the_truth_is_inside(data: st.DataObject) -> None:
    rates_ppm = data.draw(rates)
    anywhere = st.integers(0, PIECE_MS * len(rates_ppm))
    moments = data.draw(st.lists(anywhere, min_size=1, max_size=4, unique=True))
    errors = data.draw(st.lists(st.integers(-50, 50), min_size=len(moments), max_size=len(moments)))
    check_truth(rates_ppm, moments, errors, data.draw(anywhere))


# Ten pieces fast, ten slow: the chord hides a bulge of 1,000 ms in the middle.
BULGE = ([100] * 10 + [-100] * 10, [0, 20 * PIECE_MS], [0, 0], 10 * PIECE_MS)


def test_the_largest_wobble_is_inside() -> None:
    check_truth(*BULGE)


def test_that_proof_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a clock that is trusted ten times as much leaves the truth outside."""
    monkeypatch.setattr(timeline, "DRIFT_PPM", 10)
    with pytest.raises(AssertionError):
        check_truth(*BULGE)


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**40))
def test_huge_numbers_stay_integers(first: int, asked: int, utc_ms: int) -> None:
    instant = Timeline([(1, first, utc_ms, 1), (1, first + 7, utc_ms + 7, 1)]).at(1, asked)
    assert isinstance(instant.utc_ms, int) and isinstance(instant.uncertainty_ms, int)
