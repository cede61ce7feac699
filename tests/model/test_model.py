"""Every run of a migration, with every fault at every place: the model keeps all its promises.

And each rule that is broken on purpose breaks one of them: see `broken.py`.
"""

from functools import cache

import pytest

from optmigd.protocol.states import TRANSITIONS, Role
from tests.model.broken import BROKEN
from tests.model.checker import Explorer, check
from tests.model.faults import Budget
from tests.model.rules import Rules


@cache
def explored(together: int) -> Explorer:
    explorer = Explorer(Rules(), Budget(together=together))
    verdict = explorer.explore()
    assert not verdict.broken, f"\n{verdict}"
    return explorer


def test_every_promise_holds_with_two_faults_in_every_order() -> None:
    verdict = check(budget=Budget(together=2))
    print(verdict)
    assert not verdict.broken, f"\n{verdict}"
    assert verdict.worlds > 100_000


def test_the_model_reaches_every_phase() -> None:
    source, destination = explored(1).phases()
    assert source == {phase.value for role, phase, _ in TRANSITIONS if role is Role.SOURCE}
    assert destination == {
        phase.value for role, phase, _ in TRANSITIONS if role is Role.DESTINATION
    }


def test_a_run_without_faults_only_ends_well() -> None:
    explorer = explored(0)
    assert explorer.ends() == {("completed", "completed")}


def test_with_one_fault_both_sides_end_alike() -> None:
    assert explored(1).ends() == {
        ("completed", "completed"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    }


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_breaks_a_promise(rule: str) -> None:
    broken = BROKEN[rule]()
    verdict = check(broken.rules, broken.budget)
    print(verdict)
    assert broken.promise in verdict.broken
    assert verdict.run
