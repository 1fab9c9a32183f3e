"""`network` on a simulated board: the WLAN is the supervisor's (../wifi.py); each call is one message to it."""
import machine

STA_IF, AP_IF = 0, 1
STAT_IDLE, STAT_CONNECTING, STAT_GOT_IP = 0, 1, 3


class WLAN:
    """The station interface."""

    def __init__(self, interface=STA_IF):
        pass

    def active(self, on=None):
        if on is None:
            return self._state() != 0
        machine._ask(0x4E, 0, b"\1" if on else b"\0")
        return on

    def connect(self, name, password=""):
        machine._ask(0x4E, 1, name.encode() + b"\0" + password.encode())

    def disconnect(self):
        machine._ask(0x4E, 2)

    def _state(self):
        return machine._ask(0x4E, 3)[0]

    def isconnected(self):
        return self._state() == 3

    def status(self):
        return max(0, self._state() - 1) if self._state() < 3 else STAT_GOT_IP

    def ifconfig(self):
        return tuple(machine._ask(0x4E, 4).decode().split())
