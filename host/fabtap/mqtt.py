"""How do frames travel between the collector and the nodes behind the broker?

Topics: `fabtap/1/<lab>/<node>/up` from the node and `/down` to it carry frames; the retained `/state` says b"1" while the node is
connected and, by its last will, b"0". Rules:
- Everything has a deadline: a connection is made and subscribed within CONNECT_S, and one over which nothing comes, not even
  the broker's answer to a ping, is given up within some 2.5 times KEEP_ALIVE_S. Then it is tried again for ever, whatever ended it:
  a fault of one connection, ours too, ends no other node's port.
- Sessions are clean and QoS is 0: what gets lost the nodes send again, for only the collector's acknowledgement counts.
- Every connection has links of its own, as every opening of a serial port has: each node is greeted, and greets again.
- A node has a queue of QUEUE_FRAMES. What comes while it is full is dropped and counted, so that a flood costs no memory and no
  other node's turn.
"""
import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from gmqtt import Client, Subscription  # type: ignore[import-untyped]
from gmqtt.mqtt.constants import MQTTv311  # type: ignore[import-untyped]
from gmqtt.mqtt.handler import MQTTError  # type: ignore[import-untyped]

from fabtap import lab
from fabtap.complaints import Complaints
from fabtap.node_link import NodeLink
from fabtap.peer import UP_FRAME_MAX

LOG = logging.getLogger("fabtap.collector")
USER = "collector"
CONNECT_S = 5.0
RETRY_MIN_S = 1.0
RETRY_MAX_S = 3.0
KEEP_ALIVE_S = 5
LOOK_S = 0.5
CLOSE_S = 1.0
QUEUE_FRAMES = 32
UNSENT_BYTES_MAX = 65_536
REFUSED = 0x80
NEVER = -2
"""gmqtt's own reconnecting is off, or it would keep a second, unbounded loop: -1 means without end, and 0 still tries once."""

Links = Mapping[int, NodeLink]
Send = Callable[[int, bytes], None]


class BrokerGone(Exception):
    """There is no way to the broker now; the text says why."""


def topic(lab_id: str, node: int | str, leaf: str) -> str:
    """The topic of a node, or with "+" of every node."""
    return f"fabtap/1/{lab_id}/{node}/{leaf}"


class Broker:
    """The collector's side of one broker. What is refused and belongs to no node is counted in `complaints`."""

    def __init__(self, address: lab.Broker, lab_id: str, password: str, complaints: Complaints) -> None:
        # Its reconnecting and its tracebacks of lost connections would only repeat what we say ourselves.
        logging.getLogger("gmqtt").setLevel(logging.CRITICAL)
        self._address = address
        self._lab_id = lab_id
        self._password = password
        self._complaints = complaints

    async def serve(self, make_links: Callable[[Send], Links]) -> None:
        """Serve until cancelled; `make_links` gives new links for each connection, by node number."""
        where = f"{self._address.host}:{self._address.port}"
        while True:
            try:
                await self._serve_once(make_links, where)
            except BrokerGone as gone:
                self._complaints.note("broker_gone", f"{where}: {gone}")
            # Some of the wait is dice: collectors that share a broker are not to knock at once when it is back.
            await asyncio.sleep(random.uniform(RETRY_MIN_S, RETRY_MAX_S))

    async def _serve_once(self, make_links: Callable[[Send], Links], where: str) -> None:
        """One connection; always ends by raising BrokerGone, or by being cancelled."""
        try:
            connection = Connection(self._lab_id, make_links, self._complaints)
            try:
                await connection.open(self._address, self._password)
                LOG.info("the broker at %s: listening", where)
                await connection.serve()
            finally:
                await connection.close()
        except BrokerGone:
            raise
        except Exception as error:
            self._complaints.note("program_fault", repr(error))
            raise BrokerGone(f"it could not be served ({error!r})") from error


class Connection:
    """One connection, from its beginning to its end, and the nodes as they are seen through it."""

    def __init__(self, lab_id: str, make_links: Callable[[Send], Links], complaints: Complaints) -> None:
        self._lab_id = lab_id
        self._complaints = complaints
        self._links = make_links(self._send)
        self._queues: dict[int, asyncio.Queue[bytes]] = {node: asyncio.Queue(QUEUE_FRAMES) for node in self._links}
        self._changed = asyncio.Event()
        self._granted: tuple[int, ...] = ()
        self._is_lost = False
        # The name is never one that another connection has: the broker would end that one.
        self._client = Client(f"fabtap-{USER}-{secrets.token_hex(6)}", clean_session=True, logger=logging.getLogger("gmqtt"))
        self._client.set_config({"reconnect_retries": NEVER})
        self._client.on_message = self._message
        self._client.on_subscribe = self._subscribed
        self._client.on_disconnect = self._disconnected

    async def open(self, address: lab.Broker, password: str) -> None:
        """Connect and subscribe. Raises BrokerGone when that fails or takes too long."""
        self._client.set_auth_credentials(USER, password)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._connect(address)
                self._client.subscribe([Subscription(topic(self._lab_id, "+", leaf), 0) for leaf in ("up", "state")])
                while not self._granted and not self._is_lost:
                    await self._next_change()
        except TimeoutError:
            raise BrokerGone(f"no answer within {CONNECT_S:.0f} s") from None
        except MQTTError as error:
            raise BrokerGone(f"{error}; run fabtap broker config, and start the broker with what it writes") from None
        except OSError as error:
            raise BrokerGone(str(error)) from None
        if any(granted >= REFUSED for granted in self._granted):
            raise BrokerGone(f"it lets {USER} not read; run fabtap broker config, and start the broker with what it writes")
        self._check_alive()

    async def _connect(self, address: lab.Broker) -> None:
        """gmqtt's connect waits for an answer also when the broker has hung up meanwhile."""
        connecting = asyncio.create_task(self._client.connect(
            address.host_from_here, address.port, keepalive=KEEP_ALIVE_S, version=MQTTv311))
        lost = asyncio.create_task(self._wait_lost())
        try:
            await asyncio.wait([connecting, lost], return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise BrokerGone("it hung up")
            connecting.result()
        finally:
            for task in (connecting, lost):
                task.cancel()
            await asyncio.gather(connecting, lost, return_exceptions=True)

    async def serve(self) -> None:
        """Serve all nodes until the connection is lost, then raise BrokerGone."""
        tasks = [asyncio.create_task(self._watch())]
        tasks += [asyncio.create_task(link.serve(self._hand_over(node))) for node, link in self._links.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Give the socket back, politely if the broker lets us. Never raises: what ended the connection is what is told."""
        transport = self._transport()
        if transport is None:
            return
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_S):
                    await self._client.disconnect()
        finally:
            # gmqtt waits for what is unsent to leave, which it never does when the broker stands still.
            transport.abort()

    async def _watch(self) -> None:
        while True:
            self._check_alive()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._next_change()

    def _check_alive(self) -> None:
        # gmqtt begins to close a connection over which nothing comes, and that may take for ever.
        if self._is_lost or not self._client.is_connected:
            raise BrokerGone("the connection is lost")

    async def _hand_over(self, node: int) -> None:
        while True:
            await self._links[node].take(await self._queues[node].get())

    async def _wait_lost(self) -> None:
        while not self._is_lost:
            await self._next_change()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _transport(self) -> asyncio.WriteTransport | None:
        # gmqtt has no word for what is unsent, nor for an end without waiting.
        connection = self._client._connection
        return connection and connection._transport

    def _send(self, node: int, data: bytes) -> None:
        transport = self._transport()
        if transport is None or not self._client.is_connected:
            return
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._links[node].complaints.note("broker_takes_nothing")
            return
        self._client.publish(topic(self._lab_id, node, "down"), data)

    def _message(self, client: Any, name: str, payload: bytes, qos: int, properties: Mapping[str, Any]) -> None:
        try:
            # A retained one is old, and every node has been greeted at the beginning.
            self._sort_in(name, payload, is_old=bool(properties["retain"]))
        except Exception as error:
            # gmqtt would swallow it without a word.
            self._complaints.note("program_fault", repr(error))

    def _sort_in(self, name: str, payload: bytes, is_old: bool) -> None:
        node, leaf = self._node_and_leaf(name)
        if node not in self._links:
            self._complaints.note("unknown_node", repr(name[:100]))
        elif leaf == "state":
            if payload == b"1" and not is_old:
                self._links[node].greet()
        elif len(payload) > UP_FRAME_MAX:
            self._links[node].complaints.note("overlong_frame", f"{len(payload)} bytes")
        else:
            self._enqueue(node, bytes(payload))

    def _enqueue(self, node: int, data: bytes) -> None:
        try:
            self._queues[node].put_nowait(data)
        except asyncio.QueueFull:
            self._links[node].complaints.note("flooded")

    def _node_and_leaf(self, name: str) -> tuple[int, str]:
        """Node number and last level of a topic that we subscribed; 0, which no node has, for a level that is no number."""
        node, leaf = name.split("/")[-2:]
        return (int(node) if node.isascii() and node.isdigit() and len(node) <= 10 else 0), leaf

    def _subscribed(self, client: Any, mid: int, granted: tuple[int, ...], properties: object) -> None:
        self._granted = granted
        self._changed.set()

    def _disconnected(self, client: Any, packet: object, error: object = None) -> None:
        self._is_lost = True
        self._changed.set()
