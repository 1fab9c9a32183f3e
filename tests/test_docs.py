"""Are the generated parts of docs/ those that the code gives now?"""
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(root / "docs" / "generate.py"), "--check"], capture_output=True, text=True,
                          timeout=60, check=False)


def test_the_generated_parts_are_up_to_date() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_table_is_found_out(tmp_path: Path) -> None:
    """The control: a page that says something else than the code is reported."""
    for folder in ("docs", "firmware", "host", "boards", "tests", ".ci"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for file in ("README.md", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    page = tmp_path / "docs" / "PROTOCOL.md"
    assert check(tmp_path).returncode == 0
    page.write_text(page.read_text(encoding="utf-8").replace("badge_denied", "badge_refused"), encoding="utf-8")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "PROTOCOL.md" in done.stdout + done.stderr
