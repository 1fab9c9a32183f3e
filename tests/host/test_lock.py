"""Is a second collector on the same database refused, and does the lock end with its process?"""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fabtap.lock import only_collector
from fabtap.problem import Problem

HOLD = "import sys, time\nfrom pathlib import Path\nfrom fabtap.lock import only_collector\n" \
       "with only_collector(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


def test_a_second_one_is_told_to_stop_the_first(tmp_path: Path) -> None:
    database = tmp_path / "fabtap.db"
    with only_collector(database), pytest.raises(Problem, match="has a collector already"), only_collector(database):
        raise AssertionError("two collectors")
    with only_collector(database):
        assert (tmp_path / "fabtap.db.lock").exists()


def test_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    database = tmp_path / "fabtap.db"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(database)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(Problem), only_collector(database):
            raise AssertionError("two collectors")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with only_collector(database):
        pass


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="can't be opened"), only_collector(tmp_path / "none" / "fabtap.db"):
        raise AssertionError("locked nothing")
