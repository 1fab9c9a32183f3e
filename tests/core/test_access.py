"""Can the relay be on at any time other than between a tap that was accepted and the session's end?"""
import random

from helpers import raises
from nodecore import access, words

EVENTS = ("badge_absent", "badge_accepted", "badge_denied", "stop_pressed", "estop_opened", "meter_silent", "relay_dropped",
          "flash_failed", "program_failed", "idle_too_long", "settled")
CUTS = ("badge_absent", "stop_pressed", "estop_opened", "meter_silent", "relay_dropped", "flash_failed", "program_failed",
        "idle_too_long")

# state: event -> next state and what is to be done. Every pair that is not here is an error of ours.
EXPECTED = {
    "spent": "badge_absent>idle stop_pressed>spent estop_opened>spent meter_silent>spent",
    "idle": "badge_accepted>session:start badge_denied>refused:deny badge_absent>idle stop_pressed>idle estop_opened>idle "
            "meter_silent>idle",
    "refused": "badge_absent>idle stop_pressed>refused estop_opened>refused meter_silent>refused",
    "session": " ".join(["%s>settling:end" % event for event in CUTS]),
    "settling": "badge_absent>settling stop_pressed>settling estop_opened>settling meter_silent>settling "
                "settled>spent:settle",
}


def expected_rows(state):
    """The rows of one state in the form of access.TABLE."""
    rows = {}
    for row in EXPECTED[state].split():
        event, _, target = row.partition(">")
        target, _, action = target.partition(":")
        rows[event] = (target, action)
    return rows


def machine_in(state):
    """An Access that stands in `state`."""
    found = access.Access()
    found.state = state
    return found


def copied(table):
    """The table's rows, to be changed."""
    return {state: dict(rows) for state, rows in table.items()}


def complaint(state, event, target, action, absent_seen):
    """What is wrong with this step, or ""; `absent_seen` says whether a badge was absent since boot or the last end."""
    if target not in access.TABLE:
        return "leads nowhere"
    if target == "session" and (state, event) != ("idle", "badge_accepted"):
        return "a way into session"
    if target == "session" and not absent_seen:
        return "a session that starts by itself"
    if (action == "start") != (target == "session"):
        return "start is not said where a session starts"
    if (action == "end") != (state == "session"):
        return "end is not said where a session ends"
    return ""


def complaints(table):
    """What is wrong with a table, by every walk from boot: a list of (state, event, what)."""
    found = []
    seen = set()
    ahead = [("spent", False)]
    while ahead:
        state, absent_seen = ahead.pop()
        if (state, absent_seen) in seen:
            continue
        seen.add((state, absent_seen))
        for event, (target, action) in table[state].items():
            what = complaint(state, event, target, action, absent_seen)
            if what:
                found.append((state, event, what))
            else:
                ahead.append((target, state != "session" and (absent_seen or event == "badge_absent")))
    return found


def test_every_listed_pair_leads_where_the_diagram_says():
    assert set(access.TABLE) == set(EXPECTED)
    for state in EXPECTED:
        rows = expected_rows(state)
        assert access.TABLE[state] == rows, state
        for event, (target, action) in rows.items():
            machine = machine_in(state)
            assert (machine.handle(event), machine.state) == (action, target), (state, event)


def test_every_other_pair_is_our_error_and_changes_nothing():
    count = 0
    for state in EXPECTED:
        for event in EVENTS + ("no_such_event", ""):
            if event not in expected_rows(state):
                machine = machine_in(state)
                assert event in str(raises(access.AccessError, machine.handle, event)) and machine.state == state
                count += 1
    assert count == 5 * (len(EVENTS) + 2) - 27


def test_the_relay_is_permitted_in_session_and_nowhere_else():
    assert [state for state in access.TABLE if machine_in(state).relay_permitted] == ["session"]


def test_after_boot_the_badge_that_lies_there_starts_nothing():
    machine = access.Access()
    assert machine.state == "spent" and not machine.relay_permitted
    raises(access.AccessError, machine.handle, "badge_accepted")
    machine.handle("badge_absent")
    assert machine.handle("badge_accepted") == "start" and machine.relay_permitted


def test_after_every_end_a_badge_must_be_absent_before_the_next_session():
    for cut in CUTS:
        machine = machine_in("session")
        assert machine.handle(cut) == "end" and not machine.relay_permitted, cut
        raises(access.AccessError, machine.handle, "badge_accepted")
        assert machine.handle("settled") == "settle"
        raises(access.AccessError, machine.handle, "badge_accepted")
        machine.handle("badge_absent")
        assert machine.handle("badge_accepted") == "start", cut


def test_every_end_is_told_by_its_own_reason():
    told = {event: words.ENDS[reason] for event, reason in access.END_REASONS.items()}
    assert told == {
        "badge_absent": "badge_removed", "stop_pressed": "stop_pressed", "estop_opened": "estop_opened",
        "meter_silent": "meter_silent", "flash_failed": "flash_fault", "program_failed": "program_fault",
        "relay_dropped": "program_fault", "idle_too_long": "idle"}


def test_every_end_has_a_reason_that_the_wire_knows():
    ends = [event for rows in access.TABLE.values() for event, (_, action) in rows.items() if action == "end"]
    assert sorted(access.END_REASONS) == sorted(ends)
    for event, reason in access.END_REASONS.items():
        assert reason in words.ENDS, event
        # Only the host says power_lost: a node that lost its power says nothing.
        assert words.ENDS[reason] != "power_lost", event


def test_every_state_has_its_number():
    assert set(access.STATE_NUMBERS) == set(access.TABLE)
    # They stand in every status: never renumber.
    assert access.STATE_NUMBERS == {"spent": 0, "idle": 1, "refused": 2, "session": 3, "settling": 4}


def test_random_walks_enter_a_session_only_by_a_tap():
    random.seed(5)
    sessions = 0
    for _ in range(40):
        machine = access.Access()
        absent_seen = False
        for _ in range(100):
            before = machine.state
            event = EVENTS[random.randrange(len(EVENTS))]
            try:
                action = machine.handle(event)
            except access.AccessError:
                assert machine.state == before
                continue
            assert complaint(before, event, machine.state, action, absent_seen) == ""
            assert machine.relay_permitted == (machine.state == "session")
            sessions += machine.state == "session"
            absent_seen = before != "session" and (absent_seen or event == "badge_absent")
    assert sessions > 50


def test_no_walk_at_all_breaks_a_rule():
    assert complaints(access.TABLE) == []


def test_a_table_with_another_way_into_session_is_caught():
    count = 0
    for state in access.TABLE:
        for event in EVENTS:
            if (state, event) != ("idle", "badge_accepted"):
                mutant = copied(access.TABLE)
                mutant[state][event] = ("session", "start")
                assert complaints(mutant), (state, event)
                count += 1
    assert count == 5 * len(EVENTS) - 1


def test_a_table_that_forgets_the_absent_badge_is_caught():
    for state in ("spent", "settling"):
        for event in access.TABLE[state]:
            if event != "badge_absent":
                mutant = copied(access.TABLE)
                mutant[state][event] = ("idle", access.TABLE[state][event][1])
                assert complaints(mutant), (state, event)
    mutant = copied(access.TABLE)
    for cut in CUTS:
        mutant["session"][cut] = ("idle", "end")
    assert len(complaints(mutant)) > 0


def test_a_table_in_which_a_cut_does_not_end_the_session_is_caught():
    for cut in CUTS:
        mutant = copied(access.TABLE)
        mutant["session"][cut] = ("session", "")
        assert complaints(mutant), cut


def test_a_node_that_only_observes_never_permits_the_relay():
    for gates in (True, False):
        found = access.Access(gates)
        permitted = 0
        for _ in range(2000):
            event = EVENTS[random.getrandbits(16) % len(EVENTS)]
            if event in access.TABLE[found.state]:
                found.handle(event)
            permitted += found.relay_permitted
        assert (permitted > 0) == gates
