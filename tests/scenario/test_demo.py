"""Does the demo's day hold, does it say so where a program can read it, and does it leave nothing behind?"""
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rig import lab_folder, processes_naming, wait_until

DAY_MAX_S = 90
KEYS = {"sessions", "denials", "events_committed", "events_in_nodes", "lost", "duplicated", "energy_wh_metered", "energy_wh_world",
        "relay_seconds_metered", "relay_seconds_world", "charges_total", "charges_from_journals", "currency", "tap_to_relay_ms",
        "faults_injected", "checks", "seconds"}


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "fabtap", "demo", "--folder", str(folder / "demo")], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.mark.timeout(300)
def test_the_day_is_whole_and_told() -> None:
    with lab_folder() as folder:
        demo = start(folder)
        said, _ = demo.communicate(timeout=280)
        assert demo.returncode == 0, said
        found = json.loads((folder / "demo" / "summary.json").read_text())
        assert set(found) >= KEYS
        assert (found["lost"], found["duplicated"]) == (0, 0)
        assert found["events_committed"] == found["events_in_nodes"] > 50
        assert found["charges_total"] == found["charges_from_journals"] != "0.00"
        assert found["denials"] == {"unknown_badge": 1, "no_training": 1, "training_expired": 1, "member_held": 1,
                                    "machine_stopped": 1}
        assert found["sessions"] == 9 and len(found["faults_injected"]) == 5
        assert len(found["checks"]) > 30 and all(check["ok"] for check in found["checks"])
        assert found["tap_to_relay_ms"]["n"] == 9
        assert found["seconds"] <= DAY_MAX_S
        assert "All" in said and "checks hold" in said


def test_a_demo_that_is_told_to_end_leaves_nothing_running() -> None:
    with lab_folder() as folder:
        demo = start(folder)
        wait_until(lambda: (folder / "demo" / "sim" / "mill.sock").exists(), 60, "three boards are up")
        time.sleep(0.5)  # somewhere in the middle of provisioning
        demo.send_signal(signal.SIGTERM)
        said, _ = demo.communicate(timeout=60)
        assert demo.returncode == 130, said
        assert "closing the lab" in said
        assert processes_naming(str(folder)) == {}
