import pytest

from linearize.wording import change, duration, percent, percent_interval, quantity, short_count


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.00 k"), (999_999, "1.00 M"), (2_643_000_000, "2.64 B")]
)
def test_counts_have_three_digits_and_a_unit(number, text):
    assert short_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (252.3, "4 min 12 s"), (3599.6, "1 h 00 min"), (4000, "1 h 06 min")]
)
def test_durations_are_in_units_that_fit_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04931, "0.0493"), (99.96, "100"), (9.996, "10.0"), (1.5e-6, "1.5e-06"), (1234.5, "1234"), (0, "0")],
)
def test_quantities_have_three_significant_digits(value, text):
    assert quantity(value) == text


def test_what_is_not_known_is_a_dash():
    assert {show(None) for show in (percent, percent_interval, short_count, duration, quantity)} == {"–"}
    assert change(None, None) == "–"


def test_intervals_carry_no_unit_of_their_own():
    assert percent_interval((0.95, 1.0)) == "95.0–100.0"
