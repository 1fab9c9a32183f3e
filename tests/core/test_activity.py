"""Does a machine's activity follow its power, without flickering on the edge?"""
from nodecore.activity import OFF_MW, Activity

WORKING_MW = 60000


def states(*readings_mw):
    """What a new Activity says to one reading after the other."""
    activity = Activity(WORKING_MW)
    return [activity.note(power_mw) for power_mw in readings_mw]


def test_less_than_half_a_watt_is_off():
    assert OFF_MW == 500


def test_a_machine_is_off_until_it_draws_power():
    assert Activity(WORKING_MW).state == "off"
    assert states(0, OFF_MW - 1) == ["off", "off"]


def test_each_limit_belongs_to_the_upper_state():
    assert states(OFF_MW, WORKING_MW - 1, WORKING_MW) == ["idle", "idle", "working"]


def test_working_ends_below_nine_tenths():
    assert states(WORKING_MW, 54000, 53999) == ["working", "working", "idle"]


def test_a_reading_between_the_limits_does_not_start_work():
    assert states(54000, 59999, 54000) == ["idle", "idle", "idle"]
    assert states(WORKING_MW, 53999, 54000, 59999, WORKING_MW) == ["working", "idle", "idle", "idle", "working"]


def test_a_reading_that_flickers_on_the_edge_changes_nothing():
    assert states(*[WORKING_MW, 59999, 55000] * 5) == ["working"] * 15
    without_hysteresis = ["working" if power_mw >= WORKING_MW else "idle" for power_mw in (WORKING_MW, 59999, 55000)]
    assert without_hysteresis != ["working"] * 3


def test_switched_off_is_off_from_every_state():
    assert states(WORKING_MW, 0) == ["working", "off"]
    assert states(1000, 0, OFF_MW - 1, OFF_MW) == ["idle", "off", "off", "idle"]


def test_the_state_can_be_asked_again():
    activity = Activity(WORKING_MW)
    for power_mw in (1000, WORKING_MW, 0):
        assert activity.note(power_mw) == activity.state
