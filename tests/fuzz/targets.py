"""What a fuzz target is, and how one is registered.

A target takes bytes and lets nothing but named errors (`OptmigError`) come out; what it checks
beyond that it asserts. Targets leave no state that a later run could see, so that an input that
fails once fails always.
"""

from collections.abc import Callable
from dataclasses import dataclass

from optmigd.protocol.errors import OptmigError


@dataclass(frozen=True)
class Target:
    """One parser under attack.

    Attributes:
        attack: feeds it one input.
        seeds: makes a few valid inputs, from which an empty corpus begins.

    """

    attack: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


TARGETS: dict[str, Target] = {}


def target(
    seeds: Callable[[], list[bytes]], *also: type[Exception]
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Register a function under its name.

    Args:
        seeds: makes valid inputs.
        also: errors that this parser documents besides `OptmigError`.

    """
    named: tuple[type[Exception], ...] = (OptmigError, *also)

    def register(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def attack(data: bytes) -> None:
            try:
                function(data)
            except named:
                return  # refused by name: what a parser is for

        TARGETS[function.__name__] = Target(attack, seeds)
        return function

    return register
