"""Do the books say who used what, when and for how much, and does the export survive a spreadsheet and a crash?"""
import csv
import stat
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fabtap import books
from fabtap.lab import Lab, load_lab
from fabtap.problem import Problem
from fabtap.store import Writer
from nodecore.wire import encode_event

LASER, BENCH, STRANGER = bytes(8), bytes(range(8)), b"stranger"
UTC = 1_772_463_600_000  # 2026-03-02 09:00:00 in Chicago

TOML = """\
[lab]
id = "ccp"
name = "Center"
currency = "USD"
timezone = "America/Chicago"
members = "members.csv"
database = "fabtap.db"
keys = "keys.toml"
"""
for node, machine in ((1, "laser"), (2, "bench")):
    TOML += f"""
[[machine]]
id = "{machine}"
name = "{machine}"
node = {node}
board = "rpi-pico"
port = "{machine}"
working_w = 60

[[tariff]]
machine = "{machine}"
class = "*"
per_minute_on = "0.10"
per_minute_working = "0.40"
per_kwh = "0.18"
"""
CSV = """\
member,name,class,badges,trainings,status
7,Ada Example,worker-owner,01020304,,active
8,=HYPERLINK(1),guest,01020305,,active
"""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "fabtap.toml").write_text(TOML)
    (tmp_path / "members.csv").write_text(CSV)
    return load_lab(tmp_path / "fabtap.toml")


def put(writer: Writer, node_id: int, journal_id: bytes, *rows: tuple[str, int, int, dict[str, Any]]) -> None:
    data = [encode_event(name, seq, boot, 1000 * seq, values) for name, seq, boot, values in rows]
    writer.add_events(node_id, journal_id, data, UTC).result(10)


BOOTED = {"cause": 1, "roster_version": 0, "energy_epoch": 0}


def usage(session: int, on_ms: int, working_ms: int, energy: int) -> dict[str, int]:
    return {"session": session, "on_ms": on_ms, "working_ms": working_ms, "energy_mwh_total": energy}


@pytest.fixture
def database(lab: Lab) -> Path:
    """A closed session and a denial on the laser, a cut and an open one on the bench, one of a sold machine."""
    with Writer(lab.database) as writer:
        put(writer, 1, LASER,
            ("booted", 1, 1, BOOTED),
            ("badge_denied", 2, 1, {"member": 0, "badge_hash": b"12345678", "reason": 1}),
            ("session_started", 3, 1, {"member": 7, "energy_mwh_total": 1000}),
            ("session_ended", 4, 1, {**usage(3, 90_000, 30_000, 2_501_000), "reason": 1}))
        writer.add_anchor(1, LASER, 1, 0, UTC, 4).result(10)
        writer.add_anchor(1, LASER, 1, 10_000, UTC + 10_000, 6).result(10)
        put(writer, 2, BENCH,
            ("session_started", 1, 1, {"member": 8, "energy_mwh_total": 0}),
            ("session_checkpoint", 2, 1, usage(1, 60_000, 0, 0)),
            ("booted", 3, 2, BOOTED),
            ("session_started", 4, 2, {"member": 99, "energy_mwh_total": 0}),
            ("session_ended", 5, 2, {**usage(4, 60_000, 0, 0), "reason": 2}),
            ("session_started", 6, 2, {"member": 7, "energy_mwh_total": 0}))
        put(writer, 3, STRANGER,
            ("session_started", 1, 1, {"member": 7, "energy_mwh_total": 0}),
            ("session_ended", 2, 1, {**usage(1, 60_000, 0, 0), "reason": 1}),
            ("session_started", 9, 1, {"member": 7, "energy_mwh_total": 0}))
    return lab.database


def test_sessions(lab: Lab, database: Path) -> None:
    found = books.sessions(lab, database)
    assert [(one.id, one.machine and one.machine.id, one.member and one.member.name, one.session.state)
            for one in found] == [
        ("1-0000000000000000-3", "laser", "Ada Example", "closed"),
        ("2-0001020304050607-1", "bench", "=HYPERLINK(1)", "cut"),
        ("2-0001020304050607-4", "bench", None, "closed"),
        ("2-0001020304050607-6", "bench", "Ada Example", "open"),
        (f"3-{STRANGER.hex()}-1", None, "Ada Example", "closed"),
    ]
    assert (found[0].start.utc_ms, found[0].start.quality) == (UTC + 3000, "interpolated")
    assert found[1].start.quality == "unknown"
    assert found[3].end is None


def test_what_stands_above_a_hole_waits(lab: Lab, database: Path) -> None:
    assert [one.session.seq for one in books.sessions(lab, database) if one.session.node_id == 3] == [1]
    with Writer(database) as writer:
        assert writer.declare_gap(3, STRANGER, 9).result(10) == 9
    assert [one.session.seq for one in books.sessions(lab, database) if one.session.node_id == 3] == [1, 9]
    assert [oddity.kind for oddity in books.oddities(database)] == ["missing_events"]


def test_denials(lab: Lab, database: Path) -> None:
    denial, = books.denials(lab, database)
    assert (denial.denial.reason, denial.member, denial.at.utc_ms) == ("unknown_badge", None, UTC + 2000)
    assert denial.machine is not None and denial.machine.id == "laser"


def test_charges(lab: Lab, database: Path) -> None:
    found = books.charges(lab, database)
    assert [(one.charge and one.charge.total, one.pending) for one in found] == [
        (Decimal("0.80"), None), (Decimal("0.10"), None), (None, "unknown_member"), (None, "unknown_machine")]
    assert found[0].id == "ccp-1-0000000000000000-3"


def observe(database: Path, *members: int) -> None:
    """A minute on the laser for each member, observed."""
    with Writer(database) as writer:
        seq = 5
        for member in members:
            put(writer, 1, LASER, ("observation_started", seq, 1, {"member": member, "energy_mwh_total": 0}),
                ("session_ended", seq + 1, 1, {**usage(seq, 60_000, 60_000, 0), "reason": 1}))
            seq += 2


def test_an_observed_session_gets_the_same_amount_as_a_shadow_that_is_in_no_total(lab: Lab, database: Path) -> None:
    before = books.totals(lab, books.charges(lab, database))
    assert before == (Decimal("0.90"), 2, Decimal("0.00"), 0, 2)
    observe(database, 7, 8)
    found = books.charges(lab, database)
    shadows = [one for one in found if one.kind == books.SHADOW]
    assert [(one.charge and one.charge.total, one.booked.session.observed) for one in shadows] == [(Decimal("0.50"), True)] * 2
    assert books.totals(lab, found) == (*before[:2], Decimal("1.00"), 2, 2)
    assert books.totals(lab, shadows).charged == 0


def test_a_shadow_that_cannot_be_rated_is_pending_and_still_a_shadow(lab: Lab, database: Path) -> None:
    observe(database, 99)
    shadow, = [one for one in books.charges(lab, database) if one.kind == books.SHADOW]
    assert (shadow.charge, shadow.pending) == (None, "unknown_member")
    assert books.totals(lab, [shadow]) == (Decimal("0.00"), 0, Decimal("0.00"), 0, 1)


def test_nothing_booked_is_a_total_of_nothing(lab: Lab) -> None:
    assert books.totals(lab, []) == (Decimal("0.00"), 0, Decimal("0.00"), 0, 0)


def test_that_proof_can_fail(lab: Lab, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: books that take a shadow for a charge have another total."""
    observe(database, 7)
    right = books.totals(lab, books.charges(lab, database)).charged
    monkeypatch.setattr(books.BookedCharge, "kind", books.CHARGE)
    assert books.totals(lab, books.charges(lab, database)).charged == right + Decimal("0.50")


def test_a_missing_tariff_is_pending_and_never_zero(lab: Lab, database: Path) -> None:
    bare = Lab(**{**vars(lab), "tariffs": ()})
    assert {one.pending for one in books.charges(bare, database)} == {"no_tariff", "unknown_member", "unknown_machine"}
    assert all(one.charge is None for one in books.charges(bare, database))


def test_an_event_of_a_newer_node_is_odd_and_stops_nothing(lab: Lab, database: Path) -> None:
    with Writer(database) as writer:
        put(writer, 1, LASER, ("booted", 5, 1, BOOTED))
        newer = bytearray(encode_event("booted", 6, 1, 0, BOOTED))
        newer[4] = 250
        writer.add_events(1, LASER, [bytes(newer)], UTC).result(10)
    oddity, = books.oddities(database)
    assert (oddity.kind, oddity.detail) == ("undecodable", "unknown event 250")
    assert len(books.charges(lab, database)) == 4


def test_the_export(lab: Lab, database: Path, tmp_path: Path) -> None:
    file = tmp_path / "charges.csv"
    file.write_text("last month's")
    assert books.export_charges_csv(lab, database, file) == 4
    with open(file, newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert tuple(rows[0]) == books.CHARGE_COLUMNS
    assert rows[0] == {
        "charge_id": "ccp-1-0000000000000000-3", "session": "1-0000000000000000-3", "machine": "laser", "member": "7",
        "name": "Ada Example", "class": "worker-owner", "started_local": "2026-03-02T09:00:03-06:00",
        "ended_local": "2026-03-02T09:01:33-06:00", "time_uncertainty_ms": "15", "on_seconds": "90.000",
        "working_seconds": "30.000", "energy_wh": "2500.000", "end_reason": "badge_removed", "amount": "0.80",
        "currency": "USD", "rating_version": "1", "kind": "charge",
    }
    assert books.CHARGE_COLUMNS[-1] == "kind"
    assert (rows[1]["name"], rows[1]["end_reason"], rows[1]["started_local"], rows[1]["time_uncertainty_ms"]) == (
        "'=HYPERLINK(1)", "power_lost", "", "")
    assert [row["amount"] for row in rows] == ["0.80", "0.10", "", ""]
    assert (rows[2]["name"], rows[3]["machine"]) == ("", "node 3")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_bytes()
    books.export_charges_csv(lab, database, file)
    assert file.read_bytes() == first


def test_the_export_marks_shadows_in_its_last_column(lab: Lab, database: Path, tmp_path: Path) -> None:
    observe(database, 7)
    assert books.export_charges_csv(lab, database, tmp_path / "charges.csv") == 5
    lines = (tmp_path / "charges.csv").read_text("utf-8").splitlines()
    assert [line.rsplit(",", 1)[1] for line in lines] == ["kind", "charge", "shadow", "charge", "charge", "charge"]
    assert ",0.50,USD,1,shadow" in lines[2]


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@x", "\t=1", "\r", "\uff1d1"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert books.harmless(cell) == "'" + cell


def test_other_cells_stay_as_they_are() -> None:
    assert [books.harmless(cell) for cell in ("", "Ada", "1=2", "'")] == ["", "Ada", "1=2", "'"]


def test_a_failed_export_leaves_the_old_file(lab: Lab, database: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    file = folder / "charges.csv"
    file.write_text("last month's")

    def half(opened: Any, rows: Any) -> None:
        opened.write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(books, "_write_rows", half)
    with pytest.raises(Problem, match="No space left on device"):
        books.export_charges_csv(lab, database, file)
    assert file.read_text() == "last month's"
    assert list(folder.iterdir()) == [file]


def test_an_export_to_nowhere_and_from_nothing(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="there is no database"):
        books.export_charges_csv(lab, lab.database, tmp_path / "charges.csv")
    Writer(lab.database).close()
    with pytest.raises(Problem, match="can't be written"):
        books.export_charges_csv(lab, lab.database, tmp_path / "no" / "charges.csv")
    assert books.export_charges_csv(lab, lab.database, tmp_path / "charges.csv") == 0


def test_a_date_of_the_far_future_is_no_date(lab: Lab, database: Path, tmp_path: Path) -> None:
    with Writer(database) as writer:
        data = encode_event("session_started", 5, 1, 2**63, {"member": 7, "energy_mwh_total": 0})
        after = encode_event("session_ended", 6, 1, 2**63, {**usage(5, 1, 0, 0), "reason": 1})
        writer.add_events(1, LASER, [data, after], UTC).result(10)
    assert books.export_charges_csv(lab, database, tmp_path / "charges.csv") == 5
