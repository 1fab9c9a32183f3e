"""Is energy exact to the last milliwatt-millisecond, over any series of readings?"""
import random

from helpers import raises
from nodecore.power import MW_MS_PER_MWH, Energy


def series(seed, count):
    """(power_mw, duration_ms) of `count` readings: from a snubber's leak to a three-phase heater, short and long."""
    random.seed(seed)
    powers_mw = (0, 1, 7, 499, 61234, 1500000, 22999999)
    return [(powers_mw[random.randrange(7)] + random.randrange(3), random.randrange(2100)) for _ in range(count)]


def added(readings):
    """An Energy that has taken all the readings."""
    energy = Energy()
    for power_mw, duration_ms in readings:
        energy.add(power_mw, duration_ms)
    return energy


def test_a_watt_hour_is_a_thousand_milliwatt_hours():
    assert MW_MS_PER_MWH == 60 * 60 * 1000
    assert added([(1000, 3600000)]).energy_mwh_total == 1000
    assert added([(1500000, 1000)] * 3600).energy_mwh_total == 1500000


def test_energy_is_the_sum_cut_once():
    for seed in range(10):
        readings = series(seed, 300)
        energy = Energy()
        mw_ms = 0
        for power_mw, duration_ms in readings:
            energy.add(power_mw, duration_ms)
            mw_ms += power_mw * duration_ms
            assert energy.energy_mwh_total == mw_ms // MW_MS_PER_MWH
        assert mw_ms > 10 * MW_MS_PER_MWH


def test_cutting_each_reading_would_lose_energy():
    readings = series(3, 300)
    cut_each = sum([power_mw * duration_ms // MW_MS_PER_MWH for power_mw, duration_ms in readings])
    assert cut_each < added(readings).energy_mwh_total


def test_the_smallest_readings_add_up_too():
    energy = added([(1, 1000)] * 3599)
    assert energy.energy_mwh_total == 0
    energy.add(1, 1000)
    assert energy.energy_mwh_total == 1


def test_a_new_meter_has_nothing_in_its_remainder():
    assert added([(1, MW_MS_PER_MWH - 1)]).energy_mwh_total == 0
    assert added([(1, MW_MS_PER_MWH)]).energy_mwh_total == 1


def test_how_a_span_is_cut_into_readings_changes_nothing():
    for power_mw in (1, 777, 61234):
        whole = added([(power_mw, 7200000)])
        assert added([(power_mw, 1)] * 20 + [(power_mw, 7199980)]).energy_mwh_total == whole.energy_mwh_total
        assert added([(power_mw, 9999)] * 720 + [(power_mw, 720)]).energy_mwh_total == whole.energy_mwh_total


def test_no_power_and_no_time_add_nothing():
    energy = added([(0, 3600000), (1500000, 0), (0, 0)])
    assert energy.energy_mwh_total == 0
    energy.add(1, 3600000)
    assert energy.energy_mwh_total == 1


def test_a_negative_reading_is_refused_and_changes_nothing():
    energy = added([(1000, 3599999)])
    for power_mw, duration_ms in ((-1, 1000), (1000, -1), (-1, -1), (-1, 0), (0, -1)):
        raises(ValueError, energy.add, power_mw, duration_ms)
    assert energy.energy_mwh_total == 999
    energy.add(1000, 1)
    assert energy.energy_mwh_total == 1000


def test_the_total_grows_beyond_a_small_int():
    energy = added([(22999999, 2**30 - 1)] * 3)
    assert energy.energy_mwh_total == 3 * 22999999 * (2**30 - 1) // MW_MS_PER_MWH > 2**34
