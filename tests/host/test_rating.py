"""Does a charge explain itself to the last fraction, and round once?"""
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal, getcontext, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabtap import rating
from fabtap.rating import Charge, NoTariff, SessionOpen, rate, round_half_up


@dataclass(frozen=True)
class Used:
    on_ms: int = 0
    working_ms: int = 0
    energy_mwh: int = 0
    state: str = "closed"
    observed: bool = False


@dataclass(frozen=True)
class Priced:
    per_minute_on: Decimal = Decimal("0.10")
    per_minute_working: Decimal = Decimal("0.40")
    per_kwh: Decimal = Decimal("0.18")
    classes: tuple[str, ...] = ("guest",)


def test_a_charge_line_by_line() -> None:
    charge = rate(Used(90_000, 30_000, 2_500_000), "guest", Priced(), 2)
    assert [(line.what, line.unit, line.quantity, line.amount) for line in charge.lines] == [
        ("time on", "min", Fraction(3, 2), Fraction(15, 100)),
        ("time working", "min", Fraction(1, 2), Fraction(20, 100)),
        ("energy", "kWh", Fraction(5, 2), Fraction(45, 100)),
    ]
    assert (charge.precise, charge.total, str(charge.total)) == (Fraction(8, 10), Decimal("0.80"), "0.80")
    assert (charge.rounding, charge.rating_version) == (rating.ROUNDING, 1)


def test_rounding_happens_once() -> None:
    """Three lines of 0.004 each are 0.012: 0.01; rounded one by one they would be nothing."""
    third = Priced(Decimal("0.004"), Decimal("0.004"), Decimal("0.004"))
    assert rate(Used(60_000, 60_000, 1_000_000), "guest", third, 2).total == Decimal("0.01")


def test_a_half_goes_up() -> None:
    one_line = Priced(Decimal("0.005"), Decimal(0), Decimal(0))
    assert rate(Used(on_ms=60_000), "guest", one_line, 2).total == Decimal("0.01")
    assert rate(Used(on_ms=59_999), "guest", one_line, 2).total == Decimal("0.00")


@pytest.mark.parametrize(("exponent", "text"), [(0, "2"), (2, "1.50"), (3, "1.500")])
def test_currencies_round_to_their_own_unit(exponent: int, text: str) -> None:
    assert str(round_half_up(Fraction(3, 2), exponent)) == text


def test_nothing_used_is_nothing_owed_but_explained() -> None:
    charge = rate(Used(), "guest", Priced(), 2)
    assert (str(charge.total), len(charge.lines)) == ("0.00", 3)


def test_without_a_tariff_there_is_no_charge() -> None:
    with pytest.raises(NoTariff):
        rate(Used(), "guest", None, 2)
    with pytest.raises(NoTariff, match="no tariff for class trainee"):
        rate(Used(), "trainee", Priced(), 2)


def test_an_open_session_is_not_rated() -> None:
    with pytest.raises(SessionOpen):
        rate(Used(state="open"), "guest", Priced(), 2)
    assert rate(Used(state="cut"), "guest", Priced(), 2).total == 0


def test_what_was_observed_is_rated_as_if_it_were_owed() -> None:
    used = Used(90_000, 30_000, 2_500_000)
    assert rate(replace(used, observed=True), "guest", Priced(), 2) == rate(used, "guest", Priced(), 2)


def test_negative_usage_is_refused() -> None:
    for used in (Used(on_ms=-1), Used(working_ms=-1), Used(energy_mwh=-1)):
        with pytest.raises(ValueError):
            rate(used, "guest", Priced(), 2)


amounts = st.decimals(0, 10**9, places=9)
usages = st.builds(Used, st.integers(0, 2**32), st.integers(0, 2**32), st.integers(0, 2**64))
prices = st.builds(Priced, amounts, amounts, amounts)


def check_sums(charge: Charge, exponent: int) -> None:
    assert charge.precise == sum(line.quantity * Fraction(line.unit_price) for line in charge.lines)
    assert charge.precise == sum(line.amount for line in charge.lines)
    assert abs(Fraction(charge.total) - charge.precise) * 2 <= Fraction(1, 10**exponent)
    assert charge.total.as_tuple().exponent == -exponent


@pytest.mark.prove
@given(usages, prices, st.integers(0, 3))
def test_lines_sum_to_the_total(used: Used, priced: Priced, exponent: int) -> None:
    check_sums(rate(used, "guest", priced, exponent), exponent)


@given(usages, usages, prices)
def test_more_usage_never_costs_less(one: Used, more: Used, priced: Priced) -> None:
    both = Used(one.on_ms + more.on_ms, one.working_ms + more.working_ms, one.energy_mwh + more.energy_mwh)
    assert rate(both, "guest", priced, 2).total >= rate(one, "guest", priced, 2).total


@given(st.decimals(0, 10**15, places=6), st.integers(0, 3))
def test_rounding_is_decimals_own_half_up(amount: Decimal, exponent: int) -> None:
    with localcontext() as context:
        context.prec = 60
        expected = amount.quantize(Decimal(1).scaleb(-exponent), ROUND_HALF_UP)
    assert round_half_up(Fraction(amount), exponent) == expected


def test_no_context_cuts_digits() -> None:
    with localcontext() as context:
        context.prec = 3
        assert getcontext().prec == 3
        assert rate(Used(on_ms=60_000 * 123_456_789), "guest", Priced(), 2).total == Decimal("12345678.90")


def test_that_proof_can_fail() -> None:
    """Negative control: lines that were rounded each don't sum to the total, and a cent more misses it."""
    charge = rate(Used(61_000, 7_001, 1_234_567), "guest", Priced(), 2)
    check_sums(charge, 2)
    rounded = tuple(replace(line, amount=Fraction(round_half_up(line.amount, 2))) for line in charge.lines)
    with pytest.raises(AssertionError):
        check_sums(replace(charge, lines=rounded), 2)
    with pytest.raises(AssertionError):
        check_sums(replace(charge, total=charge.total + Decimal("0.01")), 2)
