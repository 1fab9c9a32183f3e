"""A node's MQTT port in MicroPython against a broker that is played by test_port_mqtt.py. mqtt_script.py PORT SECONDS [FAULT]"""
import json
import sys
import time

from drivers import port_mqtt

PORT, SECONDS = int(sys.argv[1]), int(sys.argv[2])
FAULT = sys.argv[3] if len(sys.argv) > 3 else ""


class Wifi:
    address = "127.0.0.1"
    name_server = "127.0.0.1"

    def poll(self):
        pass


settings = {"host": "127.0.0.1", "port": PORT, "user": "1", "password": "x", "topic": "fabtap/1/lab/1", "name_server_port": 53}
port = port_mqtt.Port(settings, Wifi(), None, time)
if FAULT:
    real = port_mqtt.MQTTClient.handle
    raised = []

    def handle(self, now_ms):
        if self.state == "connected" and len(raised) < 3:
            raised.append(1)
            raise {"memory": MemoryError, "index": IndexError, "attribute": AttributeError}[FAULT]("on purpose")
        return real(self, now_ms)

    port_mqtt.MQTTClient.handle = handle
received = []
longest_ms = 0
back = 0
until = time.ticks_add(time.ticks_ms(), SECONDS * 1000)
while time.ticks_diff(until, time.ticks_ms()) > 0 and not (received and b"enough" in received):
    before = time.ticks_ms()
    received += port.receive(before)
    back += port.came_back()
    if port.is_ready:
        port.send(b"frame")
    longest_ms = max(longest_ms, time.ticks_diff(time.ticks_ms(), before))
    time.sleep_ms(3)
print(json.dumps({"received": [data.decode() for data in received], "connections": port.connections, "back": back,
                  "faults": port.faults, "bad": port.bad_count, "longest_ms": longest_ms}))
