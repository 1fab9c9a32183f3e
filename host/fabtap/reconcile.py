"""Do the books agree with the physical world? Pure: sessions on one side, what the simulated world saw on the other.

Uncut session: relay time within `TIME_S`, energy within 1 % + 0.1 Wh. Session cut by the mains: it bills to its last durable
checkpoint, so never more than the world saw, and at most one checkpoint interval less.
"""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fabtap.fold import Session

TIME_S = 0.05
ENERGY_PART = 0.01
ENERGY_WH = 0.1


class Check(NamedTuple):
    """One comparison: what, whether it holds, what the books say and what the world saw."""

    name: str
    ok: bool
    booked: str = ""
    world: str = ""


def reconcile(sessions: Sequence[Session], uses: Sequence[Mapping[str, Any]], checkpoint_s: float) -> list[Check]:
    """Compare ended sessions with the world's uses, in order. `uses` as the simulator's `truth` gives them."""
    checks = [Check("as many sessions as uses of the machine", len(sessions) == len(uses),
                    str(len(sessions)), str(len(uses)))]
    for session, use in zip(sessions, uses, strict=False):
        checks += _compare(session, use, checkpoint_s)
    return checks


def _compare(session: Session, use: Mapping[str, Any], checkpoint_s: float) -> list[Check]:
    booked_s, world_s = session.on_ms / 1000, float(use["relay_s"])
    booked_wh, world_wh = session.energy_mwh / 1000, float(use["energy_wh"])
    name = f"session {session.seq}"
    times = (f"{booked_s:.3f} s", f"{world_s:.3f} s")
    energies = (f"{booked_wh:.3f} Wh", f"{world_wh:.3f} Wh")
    margin_wh = world_wh * ENERGY_PART + ENERGY_WH
    if session.end_reason != "power_lost":
        return [Check(f"{name}: time within {TIME_S * 1000:.0f} ms", abs(booked_s - world_s) <= TIME_S, *times),
                Check(f"{name}: energy within 1 % + 0.1 Wh", abs(booked_wh - world_wh) <= margin_wh, *energies)]
    below_wh = float(use["peak_w"]) * checkpoint_s / 3600 + margin_wh
    return [
        Check(f"{name}, cut: time, 0 to {checkpoint_s:g} s below the world",
              world_s - checkpoint_s - TIME_S <= booked_s <= world_s, *times),
        Check(f"{name}, cut: energy, never above, one interval below",
              world_wh - below_wh <= booked_wh <= world_wh, *energies)]
