"""What does a node do when it gets power? Outputs low first, then service mode or the node.

Before the relay is driven low nothing but `machine` is imported: whatever is wrong with the rest, the relay is off. Its pin
stands in a file of its own. The flag file `/service` asks for one boot without application and watchdog, so that files can be
moved; it is removed before it is obeyed.
"""
import machine

try:
    with open("/relay.pin") as file:
        RELAY_PIN = machine.Pin(int(file.read()), machine.Pin.OUT, value=0)
except (OSError, ValueError):
    RELAY_PIN = None


def wire_up(settings):
    """Make drivers and stores for these settings and return the node: the only place where drivers are made."""
    import os
    import struct
    import time

    from drivers import contact_gpio, flash_littlefs, meter_pzem004t, panel_led, reader_mfrc522, relay_gpio
    from node import clock, roster_file, supervisor
    from nodecore import journal

    def pin_of(name, *mode, **more):
        return machine.Pin(settings["pins"][name], *mode, **more)

    spi = machine.SPI(settings["buses"]["reader_spi"], baudrate=4000000, polarity=0, phase=0,
                      sck=pin_of("reader_sck"), mosi=pin_of("reader_mosi"), miso=pin_of("reader_miso"))
    uart = machine.UART(settings["buses"]["meter_uart"], baudrate=9600, bits=8, parity=None, stop=1,
                        tx=pin_of("meter_tx"), rx=pin_of("meter_rx"), rxbuf=256)
    buzzer = machine.PWM(pin_of("buzzer"), freq=1000, duty_u16=0)
    watchdog = machine.WDT(timeout=settings["watchdog_ms"])
    node_clock = clock.Clock()
    reader = reader_mfrc522.Reader(spi, pin_of("reader_select", machine.Pin.OUT, value=1),
                                   pin_of("reader_reset", machine.Pin.OUT, value=1))
    events = journal.Journal(flash_littlefs.Storage("/journal", "/ahead"), settings["segment_bytes"], settings["journal_records"])
    events.open(os.urandom(8))
    members = roster_file.RosterFile()
    members.open()
    watchdog.feed()
    parts = {
        "reader": reader,
        "meter": meter_pzem004t.Meter(uart),
        "relay": relay_gpio.Relay(RELAY_PIN, node_clock.ticks, settings["timer"], bool(settings["timer_hard"])),
        "panel": panel_led.Panel(pin_of("led", machine.Pin.OUT, value=0), buzzer),
        "stop": contact_gpio.Contact(pin_of("stop", machine.Pin.IN, machine.Pin.PULL_UP), 0),
        "estop": contact_gpio.Contact(pin_of("estop", machine.Pin.IN, machine.Pin.PULL_UP), 1),
        "port": wire_port(settings["mqtt"]),
        "clock": node_clock,
        "watchdog": watchdog,
        "reset": machine.reset,
        "sleep_ms": time.sleep_ms,
        "roster": members,
        "journal": events,
    }
    return supervisor.Node(settings, parts, struct.unpack("<I", os.urandom(4))[0], cause_number(),
                           lambda below: os.urandom(1)[0] * below >> 8)


def wire_port(mqtt):
    """The way to the collector: over the broker, or by cable. Only what is used is loaded."""
    import time
    if mqtt:
        from drivers import port_mqtt, resolver_udp, wifi_station
        wifi = wifi_station.Wifi(mqtt["network"], mqtt["network_password"], time)
        return port_mqtt.Port(mqtt, wifi, resolver_udp.Resolver, time)
    from drivers import port_usb
    from node import serial_lines
    return serial_lines.SerialLines(port_usb.Port())


def cause_number():
    """machine.reset_cause() as the number that words.CAUSES names; ports number theirs differently."""
    causes = (("PWRON_RESET", 1), ("HARD_RESET", 2), ("WDT_RESET", 3), ("SOFT_RESET", 4))
    found = machine.reset_cause()
    for name, number in causes:
        if hasattr(machine, name) and getattr(machine, name) == found:
            return number
    return 0


def service_asked():
    """True once after the flag was set."""
    from drivers import flash_littlefs
    return flash_littlefs.remove_file("/service")


def start():
    """Service mode, a complaint, or the node."""
    from node import settings
    if RELAY_PIN is None:
        print("FabTap: no relay pin; run `fabtap board provision`")
        return
    try:
        found = settings.load()
    except settings.SettingsError as error:
        print("FabTap:", error)
        return
    wire_up(found).run()


if service_asked():
    print("FabTap: service mode, relay off, no watchdog; reset to leave it")
else:
    start()
