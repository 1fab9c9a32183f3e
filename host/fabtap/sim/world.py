"""What happens in the physical world: mains, contactor, load, and how much energy has really flowed?

The world knows nothing of nodes: a relay coil is energised or not, a load draws watts behind the contactor. Power is a step
function of time; its integral is exact, and can be asked for any moment of the last seconds, which is what a meter samples.
Times are seconds of the monotonic clock, energy is in joules.
"""
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

CONTACTOR_CLOSE_S = 0.015
CONTACTOR_OPEN_S = 0.010
STEPS_KEPT = 512


@dataclass
class Use:
    """One closing of the relay, as the world saw it."""

    relay_on_s: float
    relay_off_s: float | None = None
    energy_j: float = 0.0
    working_s: float = 0.0
    peak_w: float = 0.0


@dataclass
class World:
    """One machine behind one contactor. `working_w` is where the truth counts the machine as working."""

    now_s: Callable[[], float]
    working_w: float = 60.0
    load_w: float = 0.0
    mains_volts: float = 120.0
    frequency: float = 60.0
    power_factor: float = 1.0
    uses: list[Use] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._coil = False
        self._closed = False
        # (time, watts from then on, joules until then)
        self._steps: list[tuple[float, float, float]] = [(self.now_s(), 0.0, 0.0)]
        self._working: list[tuple[float, float, float]] = [(self.now_s(), 0.0, 0.0)]
        self._marks: list[tuple[float, float]] = []
        self._always_on = False

    def always_on(self, always: bool) -> None:
        """The machine has a switch of its own, and FabTap's relay is not in its way: a node that only observes."""
        self._always_on = always

    def relay(self, on: bool) -> None:
        """The relay's coil is energised or not; the contactor follows a little later."""
        if on == self._coil:
            return
        self._coil = on
        now = self.now_s()
        if on:
            self.uses.append(Use(now))
            self._marks.append((self._total(self._steps, now), self._total(self._working, now)))
        else:
            self.uses[-1].relay_off_s = now
        self._closed = on
        self._step(now + (CONTACTOR_CLOSE_S if on else CONTACTOR_OPEN_S))

    def set_load(self, watts: float) -> None:
        """What the machine would draw from now on if it had power."""
        self.load_w = watts
        self._step(self.now_s())

    @property
    def relay_on(self) -> bool:
        return self._coil

    def energy_j(self, at_s: float) -> float:
        """Joules drawn by the load until a moment, now or up to some seconds ago."""
        return self._total(self._steps, at_s)

    def volts(self, at_s: float) -> float:
        """RMS volts of the mains."""
        return self.mains_volts

    def truth(self) -> dict[str, object]:
        """All uses of the machine, with what a perfect meter and clock would have said."""
        now = self.now_s()
        for index, use in enumerate(self.uses):
            energy, working = self._marks[index]
            until = now if index + 1 == len(self.uses) else self.uses[index + 1].relay_on_s
            if index + 1 < len(self._marks):
                use.energy_j = self._marks[index + 1][0] - energy
                use.working_s = self._marks[index + 1][1] - working
            else:
                use.energy_j = self._total(self._steps, until) - energy
                use.working_s = self._total(self._working, until) - working
        return {
            "relay": self._coil,
            "load_w": self.load_w,
            "energy_wh": self.energy_j(now) / 3600,
            "relay_s": sum((use.relay_off_s or now) - use.relay_on_s for use in self.uses),
            "uses": [{"relay_on_s": use.relay_on_s, "relay_s": (use.relay_off_s or now) - use.relay_on_s,
                      "open": use.relay_off_s is None, "energy_wh": use.energy_j / 3600, "working_s": use.working_s,
                      "peak_w": use.peak_w}
                     for use in self.uses],
        }

    def _step(self, at_s: float) -> None:
        watts = self.load_w if self._closed or self._always_on else 0.0
        if self._closed:
            self.uses[-1].peak_w = max(self.uses[-1].peak_w, watts)
        self._add(self._steps, at_s, watts)
        self._add(self._working, at_s, 1.0 if watts >= self.working_w else 0.0)

    @staticmethod
    def _add(steps: list[tuple[float, float, float]], at_s: float, rate: float) -> None:
        at_s = max(at_s, steps[-1][0])
        since, old_rate, total = steps[-1]
        steps.append((at_s, rate, total + old_rate * (at_s - since)))
        if len(steps) > STEPS_KEPT:
            del steps[:STEPS_KEPT // 2]

    @staticmethod
    def _total(steps: list[tuple[float, float, float]], at_s: float) -> float:
        index = max(0, bisect_right(steps, at_s, key=lambda step: step[0]) - 1)
        since, rate, total = steps[index]
        return total + rate * max(0.0, at_s - since)
