"""Does the broker that we configure let every node speak for itself only, and does one that we start end when it should?"""
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabtap import broker as brokers
from fabtap.broker import broker_config, find_mosquitto, hashed, is_loopback, start_broker
from fabtap.broker_embedded import is_password, may, read_passwords, read_rules
from fabtap.keys import broker_password, load_secrets, node_password
from fabtap.lab import Lab, load_lab
from fabtap.problem import Problem
from tests.host.mqtt_lab import BOTH, MILL, ROUTER, free_port, open_acl, write_mqtt_lab
from tests.host.mqtt_node import MqttClient, Refused
from tests.rig import processes_naming, run_fabtap, wait_until, write_lab

WAIT_S = 10.0
QUIET_S = 0.3
"""How long we listen for what must not come; the controls show that it would have come by then."""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return load_lab(write_mqtt_lab(tmp_path, free_port()))


@pytest.fixture(params=BOTH)
def running(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[brokers.RunningBroker]:
    with start_broker(lab, tmp_path / "broker", request.param) as made:
        yield made


def port_of(lab: Lab) -> int:
    assert lab.broker
    return lab.broker.port


def node_client(lab: Lab, node: int) -> MqttClient:
    return MqttClient(port_of(lab), str(node), node_password(load_secrets(lab.keys)[node]))


def collector_client(lab: Lab) -> MqttClient:
    return MqttClient(port_of(lab), "collector", broker_password(lab.keys))


# Who gets in

@pytest.mark.usefixtures("running")
def test_nodes_and_the_collector_get_in_with_their_own_password_only(lab: Lab) -> None:
    secrets = load_secrets(lab.keys)
    for client in (node_client(lab, MILL), node_client(lab, ROUTER), collector_client(lab)):
        client.drop()
    for user, password in [
        (str(MILL), node_password(secrets[ROUTER])), (str(MILL), ""), ("collector", node_password(secrets[MILL])),
        ("1", node_password(secrets[1])), ("99", broker_password(lab.keys)), (None, ""),
    ]:
        with pytest.raises((Refused, ConnectionError)):
            MqttClient(port_of(lab), user, password)


@pytest.mark.usefixtures("running")
def test_what_may_be_written_and_heard(lab: Lab) -> None:
    heard = collector_client(lab)
    for leaf in ("up", "state"):
        assert heard.subscribe(f"fabtap/1/ccp/+/{leaf}") == 0
    mill, router = node_client(lab, MILL), node_client(lab, ROUTER)
    assert mill.subscribe(f"fabtap/1/ccp/{MILL}/down") == 0
    for name in (f"{MILL}/up", f"{ROUTER}/up", f"{ROUTER}/state", "collector/up", f"{ROUTER}/down", f"{MILL}/down"):
        mill.publish(f"fabtap/1/ccp/{name}", b"from the mill")
    router.publish(f"fabtap/1/other/{ROUTER}/up", b"from the router")
    router.publish(f"fabtap/1/ccp/{ROUTER}/state", b"1")
    found: list[tuple[str, bytes, bool]] = []
    wait_until(lambda: found.extend(heard.received()) or len(found) >= 2, WAIT_S, "what is allowed")
    found += heard.received(QUIET_S)
    assert found == [(f"fabtap/1/ccp/{MILL}/up", b"from the mill", False), (f"fabtap/1/ccp/{ROUTER}/state", b"1", False)]
    heard.publish(f"fabtap/1/ccp/{MILL}/down", b"to the mill")
    assert wait_until(mill.received, WAIT_S, "the answer") == [(f"fabtap/1/ccp/{MILL}/down", b"to the mill", False)]
    assert mill.received(QUIET_S) == []
    for client in (heard, mill, router):
        client.drop()


@pytest.mark.parametrize("kind", BOTH)
def test_control_without_the_acl_everything_gets_through(
        lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    open_acl(monkeypatch)
    with start_broker(lab, tmp_path / "broker", kind):
        heard, mill = collector_client(lab), node_client(lab, MILL)
        assert heard.subscribe("fabtap/1/ccp/+/up") == 0
        mill.publish(f"fabtap/1/ccp/{ROUTER}/up", b"forged")
        assert [payload for _, payload, _ in wait_until(heard.received, QUIET_S, "the forged one")] == [b"forged"]
        heard.drop()
        mill.drop()


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_mosquitto_bounds_what_a_client_may_send(lab: Lab, tmp_path: Path) -> None:
    with start_broker(lab, tmp_path / "broker", "mosquitto"):
        mill = node_client(lab, MILL)
        mill.publish(f"fabtap/1/ccp/{MILL}/up", bytes(brokers.PACKET_BYTES_MAX))
        with pytest.raises(ConnectionError):
            for _ in range(100):
                mill.received(0.1)
        mill.drop()


# The files

def test_the_passwords_are_for_their_owner_only_and_no_file_shows_one(lab: Lab, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files = broker_config(lab, tmp_path / "made" / "broker")
    finally:
        os.umask(before)
    assert stat.S_IMODE(files.passwords.stat().st_mode) == 0o600
    passwords = [broker_password(lab.keys), *map(node_password, load_secrets(lab.keys).values())]
    for file in files:
        assert not [password for password in passwords if password in file.read_text("utf-8")]
    assert list(read_passwords(files.passwords.read_text("utf-8"))) == ["collector", str(MILL), str(ROUTER)]


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto_passwd is not installed")
def test_a_password_is_kept_as_mosquitto_keeps_it(tmp_path: Path) -> None:
    made = tmp_path / "passwd"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(made), "1", "secret"], check=True, capture_output=True)
    assert is_password("secret", read_passwords(made.read_text("utf-8"))["1"])


def test_a_hash_is_salted_and_fits_its_password_alone() -> None:
    assert hashed("secret") != hashed("secret")
    assert hashed("secret", bytes(12)) == hashed("secret", bytes(12))
    assert is_password("secret", hashed("secret"))
    for known in (hashed("Secret"), "", "secret", "$7$101$!$!", "$6$101$AAAA$AAAA", "$7$x$AAAA$AAAA"):
        assert not is_password("secret", known)


@pytest.mark.parametrize("host, listener", [("127.0.0.1", "{port} 127.0.0.1"), ("localhost", "{port} 127.0.0.1"),
                                            ("broker.lab", "{port}"), ("192.168.1.10", "{port}")])
def test_the_broker_listens_for_others_only_when_others_are_to_find_it(tmp_path: Path, host: str, listener: str) -> None:
    file = write_mqtt_lab(tmp_path, 18830)
    file.write_text(file.read_text("utf-8").replace('host = "127.0.0.1"', f'host = "{host}"'), encoding="utf-8")
    config = broker_config(load_lab(file), tmp_path).config.read_text("utf-8")
    assert f"listener {listener.format(port=18830)}\n" in config
    assert is_loopback(host) == listener.endswith("127.0.0.1")


def test_a_lab_without_a_broker_is_a_problem_with_its_mend(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"there is no \[broker\]") as caught:
        broker_config(load_lab(write_lab(tmp_path)), tmp_path)
    assert "host" in caught.value.mend


@pytest.mark.parametrize("user, access, topic, allowed", [
    ("2", "write", "fabtap/1/ccp/2/up", True), ("2", "write", "fabtap/1/ccp/3/up", False),
    ("2", "read", "fabtap/1/ccp/2/up", False), ("2", "read", "fabtap/1/ccp/+/down", False),
    ("2", "read", "#", False), ("2", "read", "fabtap/1/ccp/2/#", False),
    ("collector", "read", "fabtap/1/ccp/+/up", True), ("collector", "read", "fabtap/1/+/+/up", False),
    ("collector", "read", "fabtap/1/ccp/#", False), ("collector", "write", "fabtap/1/ccp/2/down", True),
    ("collector", "write", "fabtap/1/ccp/2/up", False), ("+", "write", "fabtap/1/ccp/2/up", False),
])
def test_amqtt_is_given_the_rules_of_the_same_file(
        lab: Lab, tmp_path: Path, user: str, access: str, topic: str, allowed: bool) -> None:
    rules = read_rules(broker_config(lab, tmp_path).acl.read_text("utf-8"))
    assert may(rules, user, access, topic) == allowed


# Start and end

def test_a_broker_is_there_when_it_is_said_to_be_and_gone_afterwards(
        lab: Lab, running: brokers.RunningBroker, tmp_path: Path) -> None:
    socket.create_connection(("127.0.0.1", port_of(lab)), 1).close()
    assert running.process_id in processes_naming(str(tmp_path))
    assert running.kind in processes_naming(str(tmp_path))[running.process_id] or running.kind == "amqtt"
    running.stop()
    assert running.has_ended
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(lab)), 1)


def test_a_broker_that_stands_still_is_ended_all_the_same(
        running: brokers.RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "STOP_S", 0.2)
    os.kill(running.process_id, signal.SIGSTOP)
    running.stop()
    assert running.has_ended


def test_it_listens_on_this_computer_only(lab: Lab, running: brokers.RunningBroker) -> None:
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:] if line.split()[3] == "0A"]
    assert f"0100007F:{port_of(lab):04X}" in listening and f"00000000:{port_of(lab):04X}" not in listening


def test_a_port_that_is_taken_is_a_problem_that_names_it(lab: Lab, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", port_of(lab))), pytest.raises(Problem, match=f"port {port_of(lab)}"):
        start_broker(lab, tmp_path / "broker")


def test_a_broker_for_others_is_not_started_for_a_trial(tmp_path: Path) -> None:
    file = write_mqtt_lab(tmp_path, free_port())
    file.write_text(file.read_text("utf-8").replace('host = "127.0.0.1"', 'host = "192.0.2.1"'), encoding="utf-8")
    with pytest.raises(Problem, match="this computer only"):
        start_broker(load_lab(file), tmp_path)


@pytest.mark.parametrize("kind", BOTH)
def test_a_broker_that_does_not_start_is_a_problem_that_says_why(
        lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(brokers, "find_mosquitto", lambda: str(program))
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(Problem, match="no such luck"):
        start_broker(lab, tmp_path / "broker", kind)


def test_without_mosquitto_it_is_amqtt(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "find_mosquitto", lambda: None)
    with start_broker(lab, tmp_path / "broker") as running:
        assert running.kind == "amqtt"
    with pytest.raises(Problem, match="is not installed"):
        start_broker(lab, tmp_path / "broker", "mosquitto")


# The command line

def test_the_command_writes_the_files_and_says_which(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    done = run_fabtap("broker", "config", folder, "--json", "--lab", lab.file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "config": str(folder / "mosquitto.conf"), "passwords": str(folder / "passwd"), "acl": str(folder / "acl"),
        "port": port_of(lab), "nodes": [MILL, ROUTER]}
    plain = run_fabtap("broker", "config", folder, "--lab", lab.file)
    assert plain.returncode == 0 and str(folder / "mosquitto.conf") in plain.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_trial_broker_ends_with_the_command(lab: Lab, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "fabtap", "broker", "run", str(tmp_path / "broker"), "--lab", str(lab.file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        assert "amqtt listens" in process.stdout.readline()
        node_client(lab, MILL).drop()
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0, process.stdout.read()
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not processes_naming(str(tmp_path)), WAIT_S, "no process is left")
