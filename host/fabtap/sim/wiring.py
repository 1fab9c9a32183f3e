"""Which chip hangs on which pin of the simulated node? The same pins that the firmware is told, from boards/<name>/board.toml."""
import time
from collections.abc import Callable

from fabtap.sim.card import Card
from fabtap.sim.chip_mfrc522 import Mfrc522
from fabtap.sim.chip_pzem004t import Pzem004t
from fabtap.sim.machine_port import MachinePort
from fabtap.sim.world import World

PRESS_S = 0.15


class Wiring:
    """The node's peripherals plugged into a MachinePort, and the things that a person can do to them."""

    def __init__(self, port: MachinePort, world: World, pins: dict[str, int], buses: dict[str, int],
                 noted: Callable[[str, object], None]) -> None:
        self._port = port
        self._pins = pins
        self._noted = noted
        self.world = world
        self.reader = Mfrc522(time.monotonic)
        self.meter = Pzem004t(time.monotonic, world)
        self.led = 0
        self.tone_hz = 0
        self._tapped_s = 0.0
        self.tap_to_relay_ms: list[float] = []
        port.spi[buses["reader_spi"]] = self.reader
        port.uart[buses["meter_uart"]] = self.meter
        port.outputs[pins["relay"]] = self._relay
        port.outputs[pins["led"]] = self._led
        port.outputs[pins["reader_select"]] = self.reader.select
        port.outputs[pins["reader_reset"]] = self.reader.reset
        port.tones[pins["buzzer"]] = self._tone
        port.inputs[pins["stop"]] = 1
        port.inputs[pins["estop"]] = 0
        port.adc[26] = lambda: 32768

    def _relay(self, level: int) -> None:
        on = bool(level)
        if on == self.world.relay_on:
            return
        if on and self._tapped_s:
            self.tap_to_relay_ms.append((time.monotonic() - self._tapped_s) * 1000)
            self._tapped_s = 0.0
        self.world.relay(on)
        self._noted("relay", "closed" if on else "open")

    def _led(self, level: int) -> None:
        self.led = level

    def _tone(self, frequency_hz: int, duty: int) -> None:
        self.tone_hz = frequency_hz if duty else 0

    def tap(self, uid: bytes) -> None:
        """A badge is laid on the reader."""
        self._tapped_s = time.monotonic()
        self.reader.cards = [Card(uid)]

    def remove(self) -> None:
        """The badge is taken away."""
        self.reader.cards = []
        self._tapped_s = 0.0

    def press(self, pressed: bool) -> None:
        """The stop button goes down or up."""
        self._port.inputs[self._pins["stop"]] = 0 if pressed else 1

    def estop(self, is_open: bool) -> None:
        """The emergency stop's auxiliary contact opens or closes."""
        self._port.inputs[self._pins["estop"]] = 1 if is_open else 0

    def node_power(self, on: bool) -> None:
        """The node's own supply; the meter hangs on the machine's mains and stays on."""
        if on:
            self.reader.power_on()
        else:
            self.reader.power_off()
