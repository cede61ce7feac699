"""How long the throttle holds a program."""

import pytest

from optmigd.enclave_shim.migration.throttle import LONGEST_HOLD_S, hold_s


@pytest.mark.parametrize("permille", [100, 500, 990])
@pytest.mark.parametrize("ran_s", [0.0005, 0.005])
def test_a_program_is_held_in_proportion_to_how_long_it_ran(ran_s: float, permille: int) -> None:
    held_s = hold_s(ran_s, permille)
    assert held_s / (held_s + ran_s) == pytest.approx(permille / 1000)


def test_no_hold_is_longer_than_people_would_bear() -> None:
    assert hold_s(0.5, 990) == LONGEST_HOLD_S
