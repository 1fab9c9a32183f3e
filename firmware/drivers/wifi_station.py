"""Is the node in the lab's WiFi, and with which address?

The port's own WLAN does the work in the background; here it is asked, and told to join again when it has been out for a while.
Nothing waits.
"""
import network

JOIN_AGAIN_MS = 10000
LOOK_MS = 250


class Wifi:
    """The station interface. `time` gives ticks_ms and ticks_diff."""

    def __init__(self, name, password, time):
        self._name = name
        self._password = password
        self._time = time
        self._wlan = network.WLAN(network.STA_IF)
        self._active = False
        self._looked_ms = time.ticks_ms() - LOOK_MS
        self._joined_ms = None
        self.address = ""
        self.name_server = ""

    def poll(self):
        """Look, at most every `LOOK_MS`, and join if need be; `address` is "" while out of the network."""
        now_ms = self._time.ticks_ms()
        if self._time.ticks_diff(now_ms, self._looked_ms) < LOOK_MS:
            return
        self._looked_ms = now_ms
        try:
            self._look(now_ms)
        except OSError:
            # A WiFi chip that does not start, or a driver busy with an earlier try: the node works without, and looks again.
            self.address = ""

    def _look(self, now_ms):
        if not self._active:
            self._wlan.active(True)
            self._active = True
        if self._wlan.isconnected():
            found = self._wlan.ifconfig()
            self.address = found[0]
            self.name_server = found[3]
            return
        self.address = ""
        if self._joined_ms is None or self._time.ticks_diff(now_ms, self._joined_ms) >= JOIN_AGAIN_MS:
            self._joined_ms = now_ms
            self._wlan.disconnect()
            self._wlan.connect(self._name, self._password)
