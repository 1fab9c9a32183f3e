"""How do frames travel over MQTT? As payloads of chumicro-mqtt's client, each step bounded, none waited for.

Topics: `fabtap/1/<lab>/<node>/up` and `/down`, and a retained `/state` that says b"1", by the last will b"0". Sessions are clean
and QoS is 0: only the collector's own acknowledgement counts. The broker's name is resolved anew at each connection, and a new
address of the node's own ends the old connection, which the network may have forgotten without a word.
"""
import errno
import os
import select
import socket

from chumicro_mqtt.client import MQTTBackpressureError, MQTTClient, ProtocolState

KEEP_ALIVE_S = 10
TIMEOUT_S = 5
RETRY_MIN_MS = 500
RETRY_MAX_MS = 3000
RECEIVED_MAX = 4
RECEIVE_BYTES = 320
CONNECTING = (errno.EINPROGRESS, 115, 119)
"""What a connect that does not wait says; the ports' numbers differ."""


def is_address(name):
    """True for a dotted IPv4 address, which needs no resolving."""
    parts = name.split(".")
    return len(parts) == 4 and all([part.isdigit() and int(part) < 256 for part in parts])


class Stream:
    """A socket under the names that chumicro-mqtt asks for; MicroPython's has no recv_into."""

    def __init__(self, bare):
        self._bare = bare
        self.send = bare.send
        self.close = bare.close

    def recv_into(self, buffer, count):
        """Number of bytes that were there. Raises OSError EAGAIN when there are none, as CPython's does."""
        found = self._bare.readinto(buffer, count)
        if found is None:
            raise OSError(errno.EAGAIN)
        return found


class Connector:
    """One way to the broker: resolve, connect. chumicro-mqtt calls `tick` until `state` is "ready" or "failed"; its own deadline,
    TIMEOUT_S, calls `cancel`.
    """

    io_socket = None

    def __init__(self, host, port, resolver, time):
        self._host = host
        self._port = port
        self._resolver = resolver
        self._time = time
        self._poller = None
        self._bare = None
        self.socket = None
        self.state = "pending"
        self.last_error = None

    def tick(self, now_ms):
        try:
            if self._bare is None:
                self._resolve(now_ms)
            elif self._poller.poll(0):
                self._finish()
        except OSError as error:
            self.cancel()
            self.last_error = error
            self.state = "failed"

    def _resolve(self, now_ms):
        address = self._host
        if self._resolver:
            address = self._resolver.poll(now_ms, self._time.ticks_diff)
            if address is None:
                return
            self._resolver.close()
            self._resolver = None
        # A dotted address: nothing is asked, nothing is waited for.
        target = socket.getaddrinfo(address, self._port)[0][-1]
        self._bare = socket.socket()
        self._bare.setblocking(False)
        try:
            self._bare.connect(target)
        except OSError as error:
            if error.errno not in CONNECTING:
                raise
        self._poller = select.poll()
        self._poller.register(self._bare, select.POLLOUT)

    def _finish(self):
        events = self._poller.poll(0)[0][1]
        if events & (select.POLLERR | select.POLLHUP):
            raise OSError(errno.ECONNREFUSED)
        self.socket = Stream(self._bare)
        self.state = "ready"

    def cancel(self):
        """Give all sockets back."""
        if self._resolver:
            self._resolver.close()
            self._resolver = None
        if self._bare:
            self._bare.close()
            self._bare = None


class Port:
    """Frames over the broker. `settings`: host, port, user, password, topic (without its last part), name_server_port.

    `new_resolver(name, server, port)` begins to ask for a name, as drivers/resolver_udp.py does.
    """

    def __init__(self, settings, wifi, new_resolver, time):
        self._settings = settings
        self._wifi = wifi
        self._new_resolver = new_resolver
        self._time = time
        self._address = ""
        self._next_ms = time.ticks_ms()
        self._retry_ms = RETRY_MIN_MS
        self._received = []
        self._came_back = False
        self._bad = 0
        self.connections = 0
        self.sends_refused = 0
        self.faults = 0
        self.last_fault = None
        topic = settings["topic"]
        self._up, self._down, self._state = topic + "/up", topic + "/down", topic + "/state"
        self._way = None
        self._client = None

    def _new_client(self):
        settings = self._settings
        client = MQTTClient(
            transport_factory=self._connector, client_id="fabtap-" + settings["user"], keep_alive_seconds=KEEP_ALIVE_S,
            ack_timeout_seconds=TIMEOUT_S, username=settings["user"], password=settings["password"],
            will_topic=self._state, will_message=b"0", will_retain=True, rx_buffer_size=RECEIVE_BYTES,
            when_disconnected="raise", max_tx_queue_size=8, ticks=self._time)
        client.on_message = self._message
        client.on_oversized = self._oversized
        client.on_connect = self._connected
        return client

    @property
    def is_ready(self):
        """Whether a frame that is sent now has a way to go."""
        return self._client is not None and self._client.state == ProtocolState.CONNECTED

    @property
    def bad_count(self):
        """What came and was no frame, and how often the client had to be replaced: a status carries the sum."""
        return self._bad + self.faults

    def came_back(self):
        """Whether the way to the collector has been made anew since the last call."""
        found, self._came_back = self._came_back, False
        return found

    def receive(self, now):
        """One bounded step of everything; list of the frames that have come."""
        try:
            self._wifi.poll()
            self._step(self._time.ticks_ms())
        except Exception as error:
            self._drop(error)
        if not self._received:
            return ()
        found, self._received = self._received, []
        return found

    def send(self, data):
        """Send one frame's bytes; what can't go now is lost, and the protocol sends it again."""
        if not self.is_ready:
            return
        try:
            self._client.publish(self._up, data)
        except MQTTBackpressureError:
            # The broker takes nothing: the client's own deadline ends the connection.
            self.sends_refused += 1
        except Exception as error:
            self._drop(error)

    def _drop(self, error):
        """Somebody else's code met something that it did not expect: that ends the connection, never the member's session.

        The client and its sockets are given back, in whatever state they were; a new one begins when the next try is due.
        """
        self.faults += 1
        self.last_fault = type(error).__name__
        self._client = None
        if self._way:
            self._way.cancel()
            self._way = None

    def _step(self, now_ms):
        if self._wifi.address != self._address:
            self._address = self._wifi.address
            if self._client and self._client.state != ProtocolState.DISCONNECTED:
                self._client.disconnect()
            self._retry_ms = RETRY_MIN_MS
            self._next_ms = now_ms
        if not self._address:
            return
        client = self._client
        if client is None or client.state in (ProtocolState.DISCONNECTED, ProtocolState.FAILED):
            if self._time.ticks_diff(now_ms, self._next_ms) < 0:
                return
            # Some of the wait is dice: when a broker comes back, not all nodes are to knock at once.
            self._next_ms = self._time.ticks_add(now_ms, self._retry_ms + os.urandom(1)[0] * self._retry_ms // 512)
            self._retry_ms = min(RETRY_MAX_MS, self._retry_ms * 2)
            if client is None:
                client = self._client = self._new_client()
            # Anew each time: the client forgets a subscription that a broker has refused once.
            client.subscribe(self._down)
            client.connect()
        client.handle(now_ms)

    def _connector(self):
        resolver = None
        if not is_address(self._settings["host"]):
            resolver = self._new_resolver(self._settings["host"], self._wifi.name_server, self._settings["name_server_port"])
        self._way = Connector(self._settings["host"], self._settings["port"], resolver, self._time)
        return self._way

    def _connected(self):
        self._retry_ms = RETRY_MIN_MS
        self._came_back = True
        self.connections += 1
        self._client.publish(self._state, b"1", retain=True)

    def _message(self, topic, payload):
        if len(self._received) < RECEIVED_MAX:
            self._received.append(bytes(payload))
        else:
            self._bad += 1

    def _oversized(self, size, topic):
        self._bad += 1
