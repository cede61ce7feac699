"""Sizes, rates and times as people write and read them.

``KiB``, ``MiB``, … are powers of 1024 and ``kB``, ``MB``, … powers of 1000, as IEC 80000-13 has
it; a bare ``K``, ``M``, ``G`` or ``T`` is a power of 1024, as in QEMU and systemd. The parsers take
what the formatters write.
"""

import math
import re
from fractions import Fraction

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NUMBER = r"(?P<number>\d+(?:_\d+)*(?:\.\d+)?)"
_SIZE = re.compile(
    _NUMBER + r"\s*(?P<prefix>[KMGTP]?)(?P<binary>i?)(?P<unit>B?)", re.ASCII | re.IGNORECASE
)
_RATE = re.compile(
    _NUMBER + r"\s*(?P<prefix>[KkMGTP]?)(?P<binary>i?)(?P<unit>B|bit|b)?(?:/s|ps)?", re.ASCII
)


def parse_size(text: str) -> int:
    """Read a size such as ``4GiB``, ``512M``, ``1.5 GB`` or ``4096``.

    Returns:
        Bytes, rounded to whole ones.

    Raises:
        ValueError: it has another form.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match["binary"] and not match["prefix"]):
        raise ValueError(
            f"expected a size such as 4GiB, 512MB or a number of bytes; found {text!r}"
        )
    decimal = match["unit"] and not match["binary"]
    return _scaled(match, base=1000 if decimal else 1024)


def parse_rate(text: str) -> int:
    """Read a rate such as ``200MB/s``, ``1GiB/s``, ``10Gbit/s`` or ``125000000``.

    Upper-case ``B`` is bytes and ``bit`` is bits; a lower-case ``b`` is refused, because it is read
    as either.

    Returns:
        Bytes per second, rounded to whole ones.

    Raises:
        ValueError: it has another form.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or match["unit"] == "b" or (match["binary"] and not match["prefix"]):
        raise ValueError(
            f"expected a rate such as 200MB/s (bytes), 1GiB/s, 10Gbit/s or a number of bytes per "
            f"second; found {text!r}"
        )
    decimal = match["unit"] and not match["binary"]
    scaled = _scaled(match, base=1000 if decimal else 1024)
    return scaled // 8 if match["unit"] == "bit" else scaled


def format_size(size_bytes: float) -> str:
    """Write a size with a power of 1024: ``1.5 GiB``."""
    return _formatted(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_rate(bytes_per_s: float) -> str:
    """Write a rate with a power of 1000: ``200 MB/s``."""
    return _formatted(bytes_per_s, 1000, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"))


def format_ms(duration_ms: float) -> str:
    """Write a duration of milliseconds: ``0.42 ms``, ``35 ms``, ``2.5 s``, ``3 min 5 s``."""
    if duration_ms < 1000:
        return f"{_three_digits(duration_ms)} ms"
    seconds = duration_ms / 1000
    if seconds < 60:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _scaled(match: re.Match[str], *, base: int) -> int:
    factor: int = base ** _POWERS[match["prefix"].upper()]
    return round(Fraction(match["number"]) * factor)


def _formatted(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if float(_three_digits(value)) < base:
            return f"{_three_digits(value)} {unit}"
        value /= base
    return f"{_three_digits(value)} {units[-1]}"


def _three_digits(value: float) -> str:
    """At least three significant digits, without an exponent or trailing zeros."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
