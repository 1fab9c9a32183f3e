"""How do frames travel on a byte port? As printable lines, so that the console stays one.

The other carrier is drivers/port_mqtt.py, whose messages are frames already; both have these four names.
"""
from nodecore import frame


class SerialLines:
    """Frames on `port`, which has `read()` and `write(data)`."""

    is_ready = True

    def __init__(self, port):
        self._port = port
        self._lines = frame.LineReader(frame.DOWN_LINE_MAX)

    def receive(self, now):
        """List of the frames that have come."""
        return self._lines.push(self._port.read())

    def send(self, data):
        """Send one frame's bytes."""
        self._port.write(frame.to_line(data))

    def came_back(self):
        """Whether the way to the collector has been made anew since the last call: a cable doesn't tell."""
        return False

    @property
    def bad_count(self):
        """What came and was no frame."""
        return self._lines.bad_lines + self._lines.overlong_lines
