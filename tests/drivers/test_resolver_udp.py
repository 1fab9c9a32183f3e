"""Does the node's resolver ask as RFC 1035 says, and believe only a fitting answer?"""
import random
import socket
import struct

import pytest

from drivers import resolver_udp
from drivers.resolver_udp import ASK_AGAIN_MS, Resolver, first_address

NAME = "broker.lab"
QUESTION = b"\x06broker\x03lab\x00\x00\x01\x00\x01"
POINTER = b"\xc0\x0c"


def record(kind: int, data: bytes, name: bytes = POINTER) -> bytes:
    """One resource record of class IN."""
    return name + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def answer(number: int, *records: bytes, flags: int = 0x8180, question: bytes = QUESTION) -> bytes:
    return struct.pack(">HHHHHH", number, flags, 1, len(records), 0, 0) + question + b"".join(records)


A = record(1, bytes((192, 168, 1, 10)))
CNAME = record(5, b"\x04host" + POINTER)
AAAA = record(28, bytes(16))


class Asked:
    """A resolver and the name server that it asks."""

    def __init__(self) -> None:
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("127.0.0.1", 0))
        self.server.settimeout(2)
        self.now_ms = 0
        self.resolver = Resolver(NAME, "127.0.0.1", self.server.getsockname()[1])

    def poll(self, later_ms: int = 0) -> str | None:
        self.now_ms += later_ms
        found: str | None = self.resolver.poll(self.now_ms, lambda after, before: after - before)
        return found

    def question(self) -> tuple[bytes, tuple[str, int]]:
        data, address = self.server.recvfrom(512)
        return data, address

    def close(self) -> None:
        self.server.close()
        self.resolver.close()


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_the_question_is_one_of_type_a(asked: Asked) -> None:
    assert asked.poll() is None
    data, _ = asked.question()
    number, flags, questions, answers, _, _ = struct.unpack_from(">HHHHHH", data)
    assert (flags, questions, answers) == (0x0100, 1, 0) and data[12:] == QUESTION
    asked.close()


@pytest.mark.parametrize("records", [(A,), (CNAME, A), (AAAA, CNAME, A), (A, AAAA)])
def test_the_first_address_is_taken(asked: Asked, records: tuple[bytes, ...]) -> None:
    asked.poll()
    data, address = asked.question()
    asked.server.sendto(answer(struct.unpack_from(">H", data)[0], *records), address)
    assert asked.poll() == "192.168.1.10"
    asked.close()


def test_it_asks_again_after_a_second_and_never_waits(asked: Asked) -> None:
    asked.poll()
    asked.question()
    assert asked.poll(ASK_AGAIN_MS - 1) is None
    asked.server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        asked.question()
    assert asked.poll(1) is None
    asked.question()
    asked.close()


def test_an_answer_to_another_question_is_not_believed(asked: Asked) -> None:
    asked.poll()
    data, address = asked.question()
    number = struct.unpack_from(">H", data)[0]
    for wrong in (answer(number ^ 1, A), answer(number, A, flags=0x0100), b"", answer(number, A)[:14],
                  answer(number, A, question=QUESTION.replace(b"lab", b"lob"))):
        asked.server.sendto(wrong, address)
        assert asked.poll() is None
    asked.server.sendto(answer(number, A), address)
    assert asked.poll() == "192.168.1.10"
    asked.close()


def test_no_such_name_is_an_error_at_once(asked: Asked) -> None:
    asked.poll()
    data, address = asked.question()
    asked.server.sendto(answer(struct.unpack_from(">H", data)[0], flags=0x8183), address)
    with pytest.raises(OSError, match="no such name"):
        asked.poll()
    asked.close()


def test_damaged_answers_end_in_an_error_or_in_nothing() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chosen = random.Random(seed)
    good = answer(7, CNAME, AAAA, A)
    for _ in range(20000):
        damaged = bytearray(good[:chosen.randrange(len(QUESTION) + 12, len(good) + 1)])
        for _ in range(chosen.randrange(4)):
            damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
        try:
            found = first_address(bytes(damaged), 12 + len(QUESTION), chosen.randrange(70))
        except OSError:
            continue
        except struct.error as error:  # MicroPython's struct raises ValueError, which the driver takes for damage
            assert issubclass(struct.error, Exception) and "unpack_from" in str(error)
            continue
        assert found is None or len(found.split(".")) == 4


def test_a_name_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="endless"):
        resolver_udp.behind_name(b"\x01a" * 100, 0)
