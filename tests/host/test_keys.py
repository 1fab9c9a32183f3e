"""Does a node keep its secret, and does nobody but its owner get to read it?"""
import errno
import fcntl
import hmac
import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fabtap import keys
from fabtap.keys import SECRET_BYTES, broker_password, load_secrets, node_password, secret_of, wifi_password
from fabtap.problem import Problem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture
def open_umask() -> object:
    """A umask that takes no right away, as a careless shell has it."""
    before = os.umask(0)
    yield None
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_no_file_means_no_secrets(path: Path) -> None:
    assert load_secrets(path) == {}
    assert not path.exists()


@pytest.mark.usefixtures("open_umask")
def test_only_the_owner_may_read_the_file(path: Path) -> None:
    plain = path.with_name("plain")
    plain.touch()
    assert mode(plain) == 0o666  # control: the umask would let anybody read
    secret_of(path, 1)
    assert mode(path) == 0o600
    secret_of(path, 2)
    assert mode(path) == 0o600


@pytest.mark.usefixtures("open_umask")
def test_what_a_crash_left_beside_it_does_not_make_it_readable(path: Path) -> None:
    left = path.with_name("keys.toml.new")
    left.write_text("[nod")
    assert mode(left) == 0o666
    secret = secret_of(path, 1)
    assert mode(path) == 0o600
    assert load_secrets(path) == {1: secret}


def test_a_secret_is_kept_over_calls_and_over_other_nodes(path: Path) -> None:
    first = secret_of(path, 1)
    second = secret_of(path, 2)
    assert len(first) == SECRET_BYTES and first != second
    assert secret_of(path, 1) == first
    assert load_secrets(path) == {1: first, 2: second}


def test_a_known_secret_leaves_the_file_alone(path: Path) -> None:
    secret_of(path, 1)
    before = path.stat()
    secret_of(path, 1)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("data", [
    b"[nodes", b"", b"[node]\n", b"nodes = 3\n", b'[nodes]\none = "00"\n', b'[nodes]\n1 = "xyz"\n', b"[nodes]\n1 = 5\n",
    b"\xff\xfe\x00 torn", b'[nodes]\n1 = "\x00"\n',
], ids=["torn", "empty", "other table", "no table", "no number", "no hex", "no text", "not UTF-8", "zeros"])
def test_a_damaged_file_is_a_problem_and_stays_as_it_is(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for use in (lambda: load_secrets(path), lambda: secret_of(path, 1)):
        with pytest.raises(Problem, match="holds no node secrets") as caught:
            use()
        assert str(path) in str(caught.value) and "backup" in caught.value.mend
    assert path.read_bytes() == data


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_secret_of_another_length_is_a_problem_that_does_not_show_it(path: Path, size: int) -> None:
    secret = secrets.token_bytes(size).hex()
    path.write_text(f'[nodes]\n1 = "{secret}"\n')
    with pytest.raises(Problem, match=f"node 1: the secret has {size} bytes, not 32") as caught:
        load_secrets(path)
    assert not secret or secret not in str(caught.value)


def test_a_failure_while_writing_leaves_the_old_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = secret_of(path, 1)

    def disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", disk_full)
        with pytest.raises(Problem, match="can't be written \\(disk full\\)"):
            secret_of(path, 2)
        assert load_secrets(path) == {1: first}
    second = secret_of(path, 2)
    assert load_secrets(path) == {1: first, 2: second}


def test_a_file_that_cant_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="can't be read") as caught:
        load_secrets(tmp_path)
    assert "as the user who owns it" in str(caught.value)


def test_the_new_file_is_durable_before_it_takes_the_name_and_then_its_name_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    secret_of(path, 1)
    assert order == ["fsync", "replace", "fsync"]  # the last is the folder's
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.toml"]


# Two at once

MAKES_SECRETS = """
import sys
from pathlib import Path
from fabtap.keys import broker_password, secret_of
sys.stdin.readline()
path = Path(sys.argv[1])
for node in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    print(node, secret_of(path, node).hex(), flush=True)
print("password", broker_password(path))
"""


def test_two_who_make_secrets_at_once_lose_none(path: Path) -> None:
    makers = [subprocess.Popen([sys.executable, "-c", MAKES_SECRETS, str(path), first], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE) for first in ("1", "21")]
    for maker in makers:
        assert maker.stdin
        maker.stdin.write("go\n")
        maker.stdin.flush()
    said = [maker.communicate(timeout=60) for maker in makers]
    assert [errors for _, errors in said] == ["", ""]
    handed_out = dict(line.split() for output, _ in said for line in output.splitlines())
    assert handed_out.pop("password") == broker_password(path)
    assert {str(node): secret.hex() for node, secret in load_secrets(path).items()} == handed_out
    assert len(handed_out) == 40


def test_a_lock_that_nobody_gives_back_is_a_problem_with_its_mend(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOCK_S", 0.05)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(Problem, match="another program has held") as caught:
            secret_of(path, 1)
    finally:
        os.close(folder)
    assert str(path.parent) in caught.value.mend
    assert secret_of(path, 1)  # control: given back


def test_a_folder_that_is_not_there_is_a_problem_with_its_mend(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="its folder can't be opened") as caught:
        secret_of(tmp_path / "none" / "keys.toml", 1)
    assert "Make the folder" in caught.value.mend


# The broker's and the WiFi's passwords

def test_the_collectors_password_is_made_once_and_kept(path: Path) -> None:
    secret = secret_of(path, 1)
    password = broker_password(path)
    assert len(bytes.fromhex(password)) == 16
    assert broker_password(path) == password
    assert secret_of(path, 2) != secret
    assert (broker_password(path), load_secrets(path)[1]) == (password, secret)
    assert mode(path) == 0o600


def test_a_file_may_begin_with_the_broker(path: Path) -> None:
    password = broker_password(path)
    assert load_secrets(path) == {}
    secret_of(path, 7)
    assert broker_password(path) == password and list(load_secrets(path)) == [7]


@pytest.mark.parametrize("password", ["", "correct horse", 'with " and \\ and \u00e4 '])
def test_what_a_person_has_written_stays(path: Path, password: str) -> None:
    line = password.replace("\\", "\\\\").replace('"', '\\"')
    written = f'# our keys\n[wifi]   # the lab\npassword = "{line}"\n\n\n'
    path.write_text(written, encoding="utf-8")
    for node in (3, 1, 2):
        secret_of(path, node)
    broker_password(path)
    secret_of(path, 4)
    assert wifi_password(path) == password
    assert path.read_text("utf-8").startswith(written.rstrip())
    assert list(load_secrets(path)) == [3, 1, 2, 4]


@pytest.mark.parametrize("text, what", [
    ("", "holds no WiFi password"), ("[wifi]\n", "holds no WiFi password"), ('[nodes]\n', "holds no WiFi password"),
    ("[wifi]\npassword = 12345678\n", "is no text"), ('[wifi]\npassword = "short"\n', "has 5 bytes"), ("wifi = 3\n", "is no text"),
])
def test_a_wifi_password_that_is_missing_or_wrong_is_a_problem_with_its_mend(path: Path, text: str, what: str) -> None:
    if text:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(Problem, match=what) as caught:
        wifi_password(path)
    assert "password" in caught.value.mend and "short" not in str(caught.value)


def test_a_table_in_another_shape_is_a_problem_and_stays_as_it_is(path: Path) -> None:
    text = f'nodes = {{1 = "{"0" * 64}"}}\n'
    path.write_text(text, encoding="utf-8")
    assert list(load_secrets(path)) == [1]
    with pytest.raises(Problem, match="can't be added"):
        secret_of(path, 2)
    assert path.read_text("utf-8") == text


def test_a_nodes_password_at_the_broker_comes_from_its_secret_alone(path: Path) -> None:
    secret = bytes(range(32))
    assert node_password(secret) == hmac.digest(secret, b"fabtap mqtt", "sha256")[:16].hex()
