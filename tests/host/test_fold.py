"""Do the events give the right sessions, and does nothing that is odd pass in silence?"""
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabtap import fold as folding
from fabtap.fold import Folded, Moment, Session, fold, fold_denials, fold_sessions
from nodecore.wire import decode_event, encode_event

JOURNAL = bytes(8)
Row = tuple[str, dict[str, Any]]


def events(*rows: Row, node_id: int = 1, journal_id: bytes = JOURNAL, first_seq: int = 1) -> list[dict[str, Any]]:
    """Events as they come from the store: through their bytes. A row's `boot` and `mono_ms` have defaults."""
    found = []
    for seq, (name, given_values) in enumerate(rows, first_seq):
        values = dict(given_values)
        boot, mono_ms = values.pop("boot", 1), values.pop("mono_ms", seq * 1000)
        event = decode_event(encode_event(name, seq, boot, mono_ms, values))
        found.append({**event, "node_id": node_id, "journal_id": journal_id})
    return found


def booted(**at: int) -> Row:
    return "booted", {"cause": 1, "roster_version": 1, "energy_epoch": 0, **at}


def started(member: int = 7, energy: int = 1000, **at: int) -> Row:
    return "session_started", {"member": member, "energy_mwh_total": energy, **at}


def observed(member: int = 7, energy: int = 1000, **at: int) -> Row:
    return "observation_started", {"member": member, "energy_mwh_total": energy, **at}


def checkpoint(session: int, on_ms: int, working_ms: int, energy: int, **at: int) -> Row:
    return "session_checkpoint", {
        "session": session, "on_ms": on_ms, "working_ms": working_ms, "energy_mwh_total": energy, **at}


def ended(session: int, reason: int, on_ms: int, working_ms: int, energy: int, **at: int) -> Row:
    return "session_ended", {"session": session, "reason": reason, "on_ms": on_ms, "working_ms": working_ms,
                             "energy_mwh_total": energy, **at}


def kinds(found: Folded) -> list[str]:
    return [oddity.kind for oddity in found.oddities]


def test_a_session_from_start_to_end() -> None:
    found = fold(events(booted(), started(), checkpoint(2, 60_000, 20_000, 1500), ended(2, 1, 90_000, 30_000, 1900)))
    assert found.sessions == [Session(1, JOURNAL, 2, 7, Moment(1, 2000), Moment(1, 92000), "badge_removed",
                                      90_000, 30_000, 900, "closed")]
    assert found.oddities == []


def test_an_observed_session_is_counted_like_any_other_and_says_so() -> None:
    records = checkpoint(2, 60_000, 20_000, 1500), ended(2, 8, 90_000, 30_000, 1900)
    found = fold(events(booted(), observed(), *records))
    gated, = fold_sessions(events(booted(), started(), *records))
    assert found.sessions == [replace(gated, observed=True)]
    assert (gated.observed, gated.end_reason, gated.energy_mwh) == (False, "idle", 900)
    assert found.oddities == []


def test_an_observed_session_is_cut_and_left_open_like_any_other() -> None:
    cut, still = fold_sessions(events(observed(), checkpoint(1, 60_000, 0, 1500), booted(boot=2), observed(boot=2)))
    assert (cut.state, cut.end_reason, cut.on_ms, cut.observed) == ("cut", "power_lost", 60_000, True)
    assert (still.state, still.observed) == ("open", True)


def test_a_machine_that_is_gated_from_now_on_leaves_its_old_sessions_observed() -> None:
    found = fold(events(observed(), started(member=8), ended(2, 1, 5, 0, 1000)))
    assert [(session.observed, session.end_reason) for session in found.sessions] == [
        (True, "end_missing"), (False, "badge_removed")]
    assert kinds(found) == ["end_missing"]


def test_the_version_is_that_of_the_rules() -> None:
    assert folding.FOLD_VERSION == 2


def test_an_open_session_shows_its_last_checkpoint() -> None:
    found = fold(events(booted(), started(), checkpoint(2, 60_000, 20_000, 1500)))
    session, = found.sessions
    assert (session.state, session.end, session.end_reason) == ("open", None, None)
    assert (session.on_ms, session.working_ms, session.energy_mwh) == (60_000, 20_000, 500)


def test_a_power_loss_bills_to_the_last_checkpoint() -> None:
    found = fold(events(booted(), started(), checkpoint(2, 60_000, 20_000, 1500), checkpoint(2, 120_000, 20_000, 2500),
                        booted(boot=2, mono_ms=5), started(boot=2, mono_ms=900)))
    cut, still = found.sessions
    assert (cut.state, cut.end_reason, cut.end) == ("cut", "power_lost", Moment(1, 122000))
    assert (cut.on_ms, cut.working_ms, cut.energy_mwh) == (120_000, 20_000, 1500)
    assert still.state == "open"
    assert found.oddities == []


def test_a_power_loss_before_the_first_checkpoint_bills_nothing() -> None:
    session, = fold_sessions(events(booted(), started(), booted(boot=2)))
    assert (session.state, session.on_ms, session.working_ms, session.energy_mwh) == ("cut", 0, 0, 0)
    assert session.end == session.start


def test_a_counter_that_was_reset_by_a_boot_is_no_energy() -> None:
    found = fold(events(started(energy=9_000_000), booted(boot=2), started(energy=5, boot=2),
                        ended(3, 1, 1000, 0, 25, boot=2)))
    assert [session.energy_mwh for session in found.sessions] == [0, 20]


def test_records_of_sessions_that_are_not_open() -> None:
    found = fold(events(booted(), checkpoint(9, 1, 1, 1), ended(9, 1, 1, 1, 1), started(), ended(4, 1, 5, 0, 1000),
                        ended(4, 1, 9, 0, 1000)))
    assert kinds(found) == ["start_unknown"] * 3
    assert [(session.seq, session.on_ms) for session in found.sessions] == [(4, 5)]


def test_smaller_counters_never_lower_a_bill() -> None:
    found = fold(events(started(), checkpoint(1, 60_000, 30_000, 2000), ended(1, 1, 50_000, 20_000, 1500)))
    session, = found.sessions
    assert (session.on_ms, session.working_ms, session.energy_mwh) == (60_000, 30_000, 1000)
    assert kinds(found) == ["smaller_on_ms", "smaller_working_ms", "smaller_energy"]


def test_energy_below_the_start_is_odd_and_free() -> None:
    found = fold(events(started(energy=1000), ended(1, 1, 60_000, 0, 900)))
    assert (found.sessions[0].energy_mwh, kinds(found)) == (0, ["smaller_energy"])


def test_a_session_that_starts_while_one_is_open_cuts_it() -> None:
    found = fold(events(started(), checkpoint(1, 60_000, 0, 1200), started(member=8)))
    assert [(session.state, session.end_reason, session.on_ms) for session in found.sessions] == [
        ("cut", "end_missing", 60_000), ("open", None, 0)]
    assert kinds(found) == ["end_missing"]


def test_a_boot_that_nobody_announced_cuts_the_session() -> None:
    found = fold(events(started(), checkpoint(1, 60_000, 0, 1200), ended(1, 1, 90_000, 0, 1500, boot=2)))
    assert [(session.state, session.on_ms) for session in found.sessions] == [("cut", 60_000)]
    assert kinds(found) == ["boot_unannounced", "start_unknown"]


def test_lost_events_are_named() -> None:
    rows = events(started(), checkpoint(1, 60_000, 0, 1200), ended(1, 2, 90_000, 0, 1500))
    found = fold([rows[0], rows[2]])
    assert [(oddity.kind, oddity.detail) for oddity in found.oddities] == [("missing_events", "2 to 2")]
    assert (found.sessions[0].state, found.sessions[0].end_reason) == ("closed", "stop_pressed")
    assert kinds(fold(rows[1:])) == ["missing_events", "start_unknown", "start_unknown"]


def test_a_clock_that_runs_backwards_is_odd() -> None:
    assert kinds(fold(events(booted(mono_ms=9), started(mono_ms=8)))) == ["time_backwards"]
    assert kinds(fold(events(booted(mono_ms=9), booted(mono_ms=8, boot=2)))) == []


def test_unknown_reasons_and_events_are_odd() -> None:
    unknown = {"name": "unknown event 99", "seq": 3, "node_id": 1, "journal_id": JOURNAL}
    found = fold([*events(started(), ended(1, 200, 5, 0, 1000)), unknown])
    assert found.sessions[0].end_reason == "reason_200"
    assert kinds(found) == ["reason_unknown", "undecodable"]


def test_journals_do_not_mix() -> None:
    one = events(started(), ended(1, 1, 5, 0, 1000))
    two = events(started(member=8), booted(boot=2), node_id=2)
    mixed = fold([one[0], two[0], one[1], two[1]])
    assert [(session.node_id, session.member, session.state) for session in mixed.sessions] == [
        (1, 7, "closed"), (2, 8, "cut")]
    assert mixed.oddities == []


def test_the_order_is_the_callers_promise() -> None:
    rows = events(booted(), started())
    for wrong in ([rows[1], rows[0]], [rows[0], rows[0]]):
        with pytest.raises(ValueError):
            fold(wrong)


def test_denials() -> None:
    denied = ("badge_denied", {"member": 7, "badge_hash": b"12345678", "reason": 3})
    denial, = fold_denials(events(booted(), denied))
    assert (denial.seq, denial.member, denial.badge_hash, denial.reason, denial.at) == (
        2, 7, b"12345678", "training_expired", Moment(1, 2000))


small = st.integers(0, 5)
counters = {"on_ms": small, "working_ms": small, "energy_mwh_total": small}
any_row = st.one_of(
    st.fixed_dictionaries({"name": st.just("booted")}),
    st.fixed_dictionaries({"name": st.just("session_started"), "member": small, "energy_mwh_total": small}),
    st.fixed_dictionaries({"name": st.just("observation_started"), "member": small, "energy_mwh_total": small}),
    st.fixed_dictionaries({"name": st.just("session_checkpoint"), "session": st.integers(1, 8), **counters}),
    st.fixed_dictionaries(
        {"name": st.just("session_ended"), "session": st.integers(1, 8), "reason": small, **counters}),
    st.fixed_dictionaries({"name": st.just("no such event")}),
)


@st.composite
def journals(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Any rows at all, well-formed or damaged, with holes."""
    found, seq, boot = [], 0, 1
    for row in draw(st.lists(any_row, max_size=12)):
        seq += draw(st.sampled_from((1, 1, 1, 2)))
        boot += row["name"] == "booted" or draw(st.sampled_from((0, 0, 0, 0, 1)))
        found.append({"node_id": 1, "journal_id": JOURNAL, "seq": seq, "boot": boot, "mono_ms": draw(small), **row})
    return found


def bills(rows: list[dict[str, Any]]) -> dict[int, tuple[int, int, int]]:
    return {session.seq: (session.on_ms, session.working_ms, session.energy_mwh) for session in fold(rows).sessions}


def check_prefixes(rows: list[dict[str, Any]]) -> None:
    whole = bills(rows)
    for length in range(len(rows)):
        for seq, bill in bills(rows[:length]).items():
            assert all(part <= full for part, full in zip(bill, whole[seq], strict=True))


@pytest.mark.prove
@settings(max_examples=400, deadline=None)
@given(journals())
def test_a_prefix_never_bills_more_than_the_whole(rows: list[dict[str, Any]]) -> None:
    check_prefixes(rows)


@settings(max_examples=200, deadline=None)
@given(journals())
def test_every_record_is_a_session_a_denial_or_an_oddity(rows: list[dict[str, Any]]) -> None:
    found = fold(rows)
    assert [session.seq for session in sorted(found.sessions, key=lambda one: one.seq)] == [
        row["seq"] for row in rows if row["name"] in ("session_started", "observation_started")]
    assert {session.seq for session in found.sessions if session.observed} == {
        row["seq"] for row in rows if row["name"] == "observation_started"}
    assert all(min(session.on_ms, session.working_ms, session.energy_mwh) >= 0 for session in found.sessions)
    odd = {oddity.seq for oddity in found.oddities}
    assert {oddity.kind for oddity in found.oddities} <= set(folding.ODDITIES)
    closing = sum(session.state == "closed" for session in found.sessions)
    ends = [row["seq"] for row in rows if row["name"] == "session_ended"]
    assert closing + len([seq for seq in ends if seq in odd]) >= len(ends)


POWER_CUT = events(started(), checkpoint(1, 60_000, 10_000, 1500), checkpoint(1, 30_000, 5_000, 1200))


def test_that_proof_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the rule of the highest checkpoint a prefix bills more than the whole."""
    check_prefixes(POWER_CUT)

    def believe(walk: Any, event: dict[str, Any]) -> None:
        walk.open.on_ms, walk.open.working_ms = event["on_ms"], event["working_ms"]

    monkeypatch.setattr(folding._Walk, "_count", believe)
    with pytest.raises(AssertionError):
        check_prefixes(POWER_CUT)


def test_that_billing_an_unseen_end_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an open session billed by the clock up to now costs more than it does once a boot cut it."""

    def by_the_clock(walk: Any, event: dict[str, Any]) -> None:
        if walk.open:
            walk.open.on_ms = event["mono_ms"] - walk.open.start.mono_ms
            if event["name"] == "booted":
                walk.open.on_ms = 0

    rows = events(started(), checkpoint(1, 500, 0, 1000), booted(boot=2))
    check_prefixes(rows)
    monkeypatch.setattr(folding._Walk, "_clock", by_the_clock)
    monkeypatch.setattr(folding._Walk, "_count", by_the_clock)
    with pytest.raises(AssertionError):
        check_prefixes(rows)
