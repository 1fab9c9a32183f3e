"""Does the audit find the same as the books when all is well, and does it find each thing that is not?

The day is a real one: the firmware on a simulated board, the real collector; every test works on a copy of its files. The journals
of the other tests are written into new littlefs images.
"""
import ast
import csv
import dataclasses
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import littlefs
import pytest

from fabtap import audit as audit_module
from fabtap import books, rating
from fabtap.audit import Audit, audit
from fabtap.audit_flash import read_journals, split_records
from fabtap.audit_usage import Session, price, tell
from fabtap.boards import load_board
from fabtap.lab import Lab, load_lab
from fabtap.problem import Problem
from fabtap.store import Writer
from nodecore.journal import encode_record
from nodecore.wire import encode_event
from tests.rig import ADA, BO, BOARD, FlashImages, Rig, lab_folder, write_lab
from tests.scenario.steps import ended, leave, ready, refuse, tap, work

PACKAGE = Path(audit_module.__file__).parent
JOURNAL_ID = bytes(range(8))


@dataclasses.dataclass
class Day:
    """The files of one lab: `images` are the flash once all had arrived, `later` after a session that nobody has fetched."""

    folder: Path
    lab: Lab
    images: dict[str, Path]
    later: dict[str, Path]

    def audit(self, **more: object) -> Audit:
        return audit(self.lab, self.lab.database, self.images, **more)  # type: ignore[arg-type]

    def sql(self, statement: str, *values: object) -> None:
        """Do something to the database that no collector does."""
        with closing(sqlite3.connect(self.lab.database)) as connection, connection:
            connection.execute(statement, values)


@pytest.fixture(scope="module")
def recorded(flash_images: FlashImages) -> Iterator[Path]:
    """A folder with a lab's files after one session, one refusal, and one session while the collector is away."""
    with lab_folder() as folder:
        rig = Rig(folder, flash_images)
        try:
            rig.start_board()
            ready(rig)
            tap(rig, ADA)
            work(rig, (300, 2.6), (20, 0.5))
            leave(rig)
            ended(rig, 1)
            assert refuse(rig, BO) == "no_training"
            rig.stop_collector()
            rig.pause(0.5)
            # As the demo does it: the board still runs.
            shutil.copyfile(folder / "sim" / "laser.img", folder / "settled.img")
            rig.pause(0.6)
            tap(rig, ADA)
            work(rig, (300, 0.5))
            leave(rig)
            rig.pause(2.5)
            rig.stop_board()
        finally:
            rig.close()
        yield folder


@pytest.fixture
def day(recorded: Path, tmp_path: Path) -> Day:
    folder = tmp_path / "lab"
    shutil.copytree(recorded, folder)
    return Day(folder, load_lab(folder / "fabtap.toml"), {"laser": folder / "settled.img"},
               {"laser": folder / "sim" / "laser.img"})


def red(found: Audit) -> str:
    """The names of the checks that don't hold, and what they say."""
    assert not found.ok
    return "\n".join(f"{check.name}: {check.booked}" for check in found.checks() if not check.ok)


def mounted(image: Path) -> tuple[littlefs.LittleFS, littlefs.UserContext]:
    """An image that can be written in memory."""
    board = load_board(BOARD)
    context = littlefs.UserContext(buffer=bytearray(image.read_bytes()))
    flash = littlefs.LittleFS(context, mount=False, block_size=board.block_bytes, block_count=board.blocks,
                              prog_size=board.program_bytes)
    flash.mount()
    return flash, context


def change_last_segment(image: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a journal's last segment; littlefs itself stays sound."""
    flash, context = mounted(image)
    folder = "/journal/" + flash.listdir("/journal")[0]
    path = f"{folder}/{max(flash.listdir(folder))}"
    with flash.open(path, "rb") as file:
        data = file.read()
    with flash.open(path, "wb") as file:
        file.write(change(data))
    image.write_bytes(context.buffer)


def flipped(data: bytes) -> bytes:
    """One bit of the last record's event."""
    changed = bytearray(data)
    changed[-6] ^= 0x10
    return bytes(changed)


def test_a_real_day_is_whole(day: Day) -> None:
    before = day.images["laser"].read_bytes()
    found = day.audit()
    assert found.ok, red(found)
    assert (found.lost, found.waiting, found.duplicated, found.sessions) == (0, 0, 0, 1)
    # booted, session_started, a checkpoint or more, session_ended, badge_denied.
    assert found.events_in_nodes == found.events_committed >= 5
    assert found.charges_total == found.charges_from_journals > 0
    assert day.images["laser"].read_bytes() == before


def test_what_the_csv_says_is_what_is_audited(day: Day, tmp_path: Path) -> None:
    target = tmp_path / "charges.csv"
    books.export_charges_csv(day.lab, day.lab.database, target)
    assert day.audit(charges_csv=target).ok
    rows = list(csv.DictReader(target.open(encoding="utf-8", newline="")))
    energy = rows[0]["energy_wh"]
    target.write_text(target.read_text(encoding="utf-8").replace(f",{energy},", f",{Decimal(energy) + Decimal('0.001')},"),
                      encoding="utf-8")
    found = day.audit(charges_csv=target)
    assert "energy_wh" in red(found) and not found.differences["sessions"]
    target.write_text(target.read_text(encoding="utf-8") + target.read_text(encoding="utf-8").splitlines()[-1] + "\n", "utf-8")
    assert day.audit(charges_csv=target).duplicated == 1


def test_a_rating_that_is_wrong_is_found(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rating, "MWH_PER_KWH", 1_000)
    found = day.audit()
    assert "charges are equal" in red(found) and found.charges_total != found.charges_from_journals
    assert not found.differences["sessions"]


def test_an_event_that_is_not_in_the_database_is_lost(day: Day) -> None:
    day.sql("DELETE FROM event WHERE seq = 3")
    found = day.audit()
    assert found.lost == 1 and "laser, event 3 is not in the database" in red(found)


def test_a_changed_byte_in_the_database_is_found(day: Day) -> None:
    day.sql("UPDATE event SET bytes = CAST(substr(bytes, 1, length(bytes) - 1) || x'7f' AS BLOB) WHERE seq = 2")
    found = day.audit()
    assert found.lost == 0 and "laser, event 2 differs" in red(found)


def test_an_event_that_is_stored_twice_is_found(day: Day) -> None:
    day.sql("INSERT INTO event SELECT node_id, journal_id, 900, bytes, received_utc_ms FROM event WHERE seq = 1")
    found = day.audit()
    assert found.duplicated == 1 and "event 900 is not in the flash" in red(found)


def test_a_flipped_bit_in_a_record_is_found(day: Day) -> None:
    change_last_segment(day.images["laser"], flipped)
    found = day.audit()
    assert found.lost == 0 and "can't be read" in red(found) and "is not in the flash" in red(found)


def test_a_flipped_bit_under_the_file_system_is_found(day: Day) -> None:
    """littlefs has check sums of its own: it falls back to what it held before."""
    with closing(sqlite3.connect(day.lab.database)) as connection:
        (last,) = connection.execute("SELECT bytes FROM event ORDER BY seq DESC").fetchone()
    image = bytearray(day.images["laser"].read_bytes())
    places = []
    while (place := image.find(last, places[-1] + 1 if places else 0)) >= 0:
        places.append(place)
    assert places
    for place in places:
        image[place + 10] ^= 0x04
    day.images["laser"].write_bytes(image)
    try:
        assert "is not in the flash" in red(day.audit())
    except Problem as problem:
        assert "can't be read" in str(problem)  # noqa: PT017


def test_a_record_that_was_never_finished_is_no_event(day: Day) -> None:
    change_last_segment(day.images["laser"], lambda data: data + encode_record(bytes(38))[:20])
    found = day.audit()
    assert found.ok, red(found)


def test_what_waits_is_lost_only_when_all_should_have_come(day: Day) -> None:
    day.images = day.later
    found = day.audit(everything_arrived=False)
    assert found.ok and found.lost == 0 and found.waiting >= 2, red(found)
    found = day.audit()
    assert found.lost >= 2 and "is only in the journals" in red(found)


def test_a_loss_behind_the_acknowledgement_is_one_at_any_time(day: Day) -> None:
    day.images = day.later
    day.sql("DELETE FROM event WHERE seq = 2")
    found = day.audit(everything_arrived=False)
    assert found.lost == 1 and not found.ok


def test_a_machine_without_an_image_is_told(day: Day) -> None:
    day.images = {}
    assert "laser: there is no flash image" in red(day.audit())


def test_without_littlefs_it_says_what_to_install(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "littlefs", None)
    with pytest.raises(Problem, match=r"fabtap\[audit\]"):
        day.audit()


def test_an_image_that_is_none_is_a_problem(day: Day) -> None:
    size = day.images["laser"].stat().st_size
    for data, says in ((b"\xff" * size, "no file system"), (b"short", "has 5 bytes")):
        day.images["laser"].write_bytes(data)
        with pytest.raises(Problem, match=says):
            day.audit()
    day.images["laser"].unlink()
    with pytest.raises(Problem, match="can't be read"):
        day.audit()


def made_image(path: Path, segments: Mapping[int, bytes], note: bytes = b"") -> Path:
    """A new image with one journal."""
    board = load_board(BOARD)
    context = littlefs.UserContext(board.blocks * board.block_bytes)
    flash = littlefs.LittleFS(context, mount=False, block_size=board.block_bytes, block_count=board.blocks,
                              prog_size=board.program_bytes)
    flash.format()
    flash.mount()
    flash.makedirs(f"/journal/{JOURNAL_ID.hex()}")
    flash.mkdir("/ahead")
    files = {f"/journal/{JOURNAL_ID.hex()}/{first:08x}": data for first, data in segments.items()}
    for name, data in {**files, **({"/ahead/event": note} if note else {})}.items():
        with flash.open(name, "wb") as file:
            file.write(data)
    path.write_bytes(context.buffer)
    return path


def event(name: str, seq: int, boot: int = 1, **values: object) -> bytes:
    return encode_event(name, seq, boot, 1000 * seq, values)


def booted(seq: int, boot: int = 1) -> bytes:
    return event("booted", seq, boot, cause=1, roster_version=0, energy_epoch=0)


RECORDS = {seq: encode_record(booted(seq, seq)) for seq in range(1, 10)}


@pytest.mark.parametrize(("segments", "note", "seqs", "complaints"), [
    ({1: RECORDS[1] + RECORDS[2], 3: RECORDS[3]}, b"", [1, 2, 3], []),
    ({1: b""}, b"", [], []),
    # The note: newer than the journal; older; another journal's; half of it in the segment already.
    ({1: RECORDS[1]}, JOURNAL_ID + RECORDS[2], [1, 2], []),
    ({1: RECORDS[1] + RECORDS[2]}, JOURNAL_ID + encode_record(booted(2, 9)), [1, 2], []),
    ({1: RECORDS[1]}, bytes(8) + RECORDS[2], [1], []),
    ({1: RECORDS[1] + RECORDS[2][:9]}, JOURNAL_ID + RECORDS[2], [1, 2], []),
    # A cut-off record in the middle, and one whose number was given again.
    ({1: RECORDS[1] + RECORDS[2][:9], 2: RECORDS[2]}, b"", [1, 2], []),
    ({1: RECORDS[1] + encode_record(booted(2, 9)), 2: RECORDS[2]}, b"", [1, 2], []),
    # Damage.
    ({1: RECORDS[1] + flipped(RECORDS[2]), 3: RECORDS[3]}, b"", [1, 3],
     ["segment 1: 31 bytes behind event 1 can't be read", "events 2 to 2 are not in the flash"]),
    ({1: RECORDS[1], 5: RECORDS[5]}, b"", [1, 5], ["events 2 to 4 are not in the flash"]),
    ({1: RECORDS[1] + RECORDS[3]}, b"", [1], ["segment 1: event 3 stands where 2 belongs"]),
    ({1: RECORDS[1] + b"\0" * 30}, b"", [1], ["segment 1: 30 bytes behind event 1 can't be read"]),
], ids=[
    "segments", "empty", "note", "old-note", "other-note", "note-half-moved", "cut-off", "number-given-again", "flipped",
    "hole", "wrong-number", "no-record"])
def test_journals_are_read_as_they_were_promised(tmp_path: Path, segments: dict[int, bytes], note: bytes, seqs: list[int],
                                                 complaints: list[str]) -> None:
    (journal,) = read_journals(made_image(tmp_path / "made.img", segments, note), load_board(BOARD))
    assert (journal.journal_id, sorted(journal.events), journal.complaints) == (JOURNAL_ID, seqs, complaints)
    assert all(journal.events[seq] == booted(seq, seq) for seq in seqs)


def test_no_cut_of_a_record_makes_an_event() -> None:
    for end in range(len(RECORDS[1])):
        assert split_records(RECORDS[1][:end])[0] == []


def story(mode: str = "session_started") -> list[bytes]:
    """Closed, cut without and with a checkpoint, followed without an end, open."""
    used = {"on_ms": 61_000, "working_ms": 30_000, "energy_mwh_total": 70_000}
    return [
        booted(1), event(mode, 2, member=101, energy_mwh_total=50_000),
        event("session_checkpoint", 3, session=2, **{**used, "on_ms": 60_000}),
        event("session_ended", 4, session=2, reason=8, **used),
        event("badge_denied", 5, member=0, badge_hash=bytes(8), reason=1),
        event(mode, 6, member=103, energy_mwh_total=70_000), booted(7, 2),
        event(mode, 8, 2, member=101, energy_mwh_total=0), event("session_checkpoint", 9, 2, session=8, **used), booted(10, 3),
        event(mode, 11, 3, member=101, energy_mwh_total=0), event("fault_seen", 12, 3, fault=1, detail=bytes(32)),
        event(mode, 13, 3, member=101, energy_mwh_total=5), event("session_checkpoint", 14, 3, session=13, **used),
    ]


def stored_lab(folder: Path, events: list[bytes]) -> tuple[Lab, dict[str, Path]]:
    """A lab whose database and flash both hold these events."""
    lab = load_lab(write_lab(folder))
    with Writer(lab.database) as writer:
        writer.add_events(1, JOURNAL_ID, events, 0).result(10)
    records = b"".join(map(encode_record, events))
    return lab, {"laser": made_image(folder / "made.img", {1: records})}


def test_every_way_to_end_is_told_as_the_books_do(tmp_path: Path) -> None:
    lab, images = stored_lab(tmp_path, story())
    found = audit(lab, lab.database, images)
    assert found.ok, red(found)
    assert found.sessions == 5 and found.charges_total == found.charges_from_journals == Decimal("0.62")
    ends = [session.end_reason for session in tell(1, JOURNAL_ID, {seq: data for seq, data in enumerate(story(), 1)})[0]]
    assert ends == ["idle", "power_lost", "power_lost", "end_missing", None]


def test_what_was_only_observed_is_in_no_total(tmp_path: Path) -> None:
    lab, images = stored_lab(tmp_path, story("observation_started"))
    found = audit(lab, lab.database, images)
    assert found.ok, red(found)
    assert found.sessions == 5 and found.charges_total == found.charges_from_journals == 0


@pytest.mark.parametrize("exponent", [0, 2, 3])
def test_half_a_unit_goes_up_and_less_does_not(exponent: int) -> None:
    unit = Decimal(1).scaleb(-exponent)
    for on_ms, units in ((29_999, 0), (30_000, 1), (89_999, 1), (90_000, 2)):
        session = Session("", 1, 101, 1, 0, "idle", on_ms, 0, 0, False)
        assert price(session, unit, Decimal(0), Decimal(0), exponent) == units * unit


def imported(name: str, seen: set[str]) -> set[str]:
    """All modules that a file of the package imports, and those of the files that it imports of the package."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                   [str(node.module)] + [f"{node.module}.{alias.name}" for alias in node.names]
                   if isinstance(node, ast.ImportFrom) else [])
        for module in set(modules) - seen:
            seen.add(module)
            inner = module.removeprefix("fabtap.")
            if inner != module and (PACKAGE / f"{inner}.py").exists():
                imported(inner, seen)
    return seen


def test_the_reading_shares_no_code_with_what_it_checks() -> None:
    refused = ("nodecore", "fabtap.fold", "fabtap.rating", "fabtap.books", "fabtap.store", "fabtap.peer", "fabtap.lab")
    for name in ("audit_flash", "audit_usage"):
        shared = [module for module in imported(name, set()) if module.startswith(refused)]
        assert not shared, f"{name} reaches {shared}"
    own = {module for node in ast.walk(ast.parse((PACKAGE / "audit.py").read_text(encoding="utf-8")))
           if isinstance(node, ast.ImportFrom) for module in (node.module, *(f"{node.module}.{one.name}" for one in node.names))}
    assert not [module for module in own if str(module).startswith(("nodecore", "fabtap.fold", "fabtap.rating"))]
    # The books are what is audited, and the lab is its input; both reach nodecore, so the look above would have seen it.
    assert any(module.startswith("nodecore") for module in imported("audit", set()))
