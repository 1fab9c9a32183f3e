"""What does a session cost, and why?

PURE: exact fractions and Decimals, no float.

- Quantities and amounts of lines are exact and never rounded; the charge's total is rounded once, half up, to the
  currency's smallest unit (ROUNDING). So a charge's lines always explain its total to within half a unit.
- Each line is there, also at no cost: a member sees everything that was counted.
- Only a session that has ended is rated; without a tariff there is no charge, never one of zero.
- A session that was only observed is rated as any other; that nobody owes its amount is said in books.py.
"""
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Protocol

RATING_VERSION = 1
ROUNDING = "half up, once, at the charge's total"

MS_PER_MINUTE = 60_000
MWH_PER_KWH = 1_000_000  # milliwatt-hours


class NoTariff(Exception):
    """The machine has no tariff for the member's class."""


class SessionOpen(Exception):
    """The session hasn't ended: its usage isn't known yet."""


class Usage(Protocol):
    """What rating needs of a session (fold.Session has it)."""

    @property
    def state(self) -> str: ...
    @property
    def on_ms(self) -> int: ...
    @property
    def working_ms(self) -> int: ...
    @property
    def energy_mwh(self) -> int: ...


class Prices(Protocol):
    """What rating needs of a tariff (lab.Tariff has it): amounts in the currency, and the classes that pay them."""

    @property
    def classes(self) -> Collection[str]: ...
    @property
    def per_minute_on(self) -> Decimal: ...
    @property
    def per_minute_working(self) -> Decimal: ...
    @property
    def per_kwh(self) -> Decimal: ...


@dataclass(frozen=True)
class Line:
    """`quantity` in `unit` ("min" or "kWh") times `unit_price` is `amount`; all exact."""

    what: str
    unit: str
    quantity: Fraction
    unit_price: Decimal
    amount: Fraction


@dataclass(frozen=True)
class Charge:
    """The lines, their exact sum `precise`, and `total`, which is `precise` rounded by the `rounding` rule."""

    lines: tuple[Line, ...]
    precise: Fraction
    total: Decimal
    rounding: str = ROUNDING
    rating_version: int = RATING_VERSION


def rate(session: Usage, member_class: str, tariff: Prices | None, currency_exponent: int) -> Charge:
    """The charge of an ended session; `currency_exponent` is the number of decimals of the currency's smallest unit.

    Raises NoTariff if `tariff` is None or isn't for `member_class`, SessionOpen, and ValueError for negative usage.
    """
    if tariff is None or member_class not in tariff.classes:
        raise NoTariff(f"no tariff for class {member_class}")
    if session.state == "open":
        raise SessionOpen("the session hasn't ended")
    lines = (
        _line("time on", "min", session.on_ms, MS_PER_MINUTE, tariff.per_minute_on),
        _line("time working", "min", session.working_ms, MS_PER_MINUTE, tariff.per_minute_working),
        _line("energy", "kWh", session.energy_mwh, MWH_PER_KWH, tariff.per_kwh),
    )
    precise = sum((line.amount for line in lines), Fraction(0))
    return Charge(lines, precise, round_half_up(precise, currency_exponent))


def round_half_up(amount: Fraction, exponent: int) -> Decimal:
    """A non-negative amount with `exponent` decimals; a half goes up. On integers: no context cuts digits."""
    smallest = amount * 10**exponent
    units = (2 * smallest.numerator + smallest.denominator) // (2 * smallest.denominator)
    return Decimal((0, tuple(map(int, str(units))), -exponent))


def _line(what: str, unit: str, counted: int, per_unit: int, unit_price: Decimal) -> Line:
    if counted < 0:
        raise ValueError(f"{what}: {counted} is less than nothing")
    quantity = Fraction(counted, per_unit)
    return Line(what, unit, quantity, unit_price, quantity * Fraction(unit_price))
