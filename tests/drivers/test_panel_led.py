"""Does the panel blink as its table says, and does every tone end?"""
from drivers.panel_led import SHOWN, TONES, Panel


class Led:
    def __init__(self) -> None:
        self.level = 0

    def __call__(self, level: int) -> None:
        self.level = level


class Buzzer:
    def __init__(self) -> None:
        self.hz = 0
        self.duty = 0

    def freq(self, hz: int) -> None:
        self.hz = hz

    def duty_u16(self, duty: int) -> None:
        self.duty = duty


def test_each_row_is_lit_as_long_as_it_says() -> None:
    for what, (period_ms, lit_ms) in SHOWN.items():
        led = Led()
        panel = Panel(led, None)
        panel.show(what, 1000)
        lit = 0
        for ms in range(period_ms):
            panel.tick(1000 + period_ms + ms)
            lit += led.level
        assert lit == lit_ms, what


def test_a_tone_ends_by_itself_and_a_change_sounds_again() -> None:
    buzzer = Buzzer()
    panel = Panel(Led(), buzzer)
    for start in (1000, 5000):
        panel.show("refused", start)
        assert (buzzer.hz, buzzer.duty > 0) == (TONES["refused"][0], True)
        panel.tick(start + TONES["refused"][1] - 1)
        assert buzzer.duty > 0
        panel.tick(start + TONES["refused"][1])
        assert buzzer.duty == 0
        panel.show("idle", start + 1000)
        assert buzzer.duty == 0
