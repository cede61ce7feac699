"""Sizes, rates and times: what people write is read as they mean it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.units import format_ms, format_rate, format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1_000", 1000),
        ("4GiB", 4 << 30),
        ("4 GiB", 4 << 30),
        ("4gib", 4 << 30),
        ("4G", 4 << 30),
        ("4GB", 4_000_000_000),
        ("1.5MiB", 3 << 19),
        ("512k", 512 << 10),
        ("100B", 100),
        ("2PiB", 2 << 50),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "4 Gi B", "4iB", "4GiBs", "1e9", "4XB", "4Gbit", "٤", "nan", "1__0"]
)
def test_other_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 4GiB") as refused:
        parse_size(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("200MB/s", 200_000_000),
        ("200 MB/s", 200_000_000),
        ("200MB", 200_000_000),
        ("1GiB/s", 1 << 30),
        ("10Gbit/s", 1_250_000_000),
        ("8kbit/s", 1000),
        ("125000000", 125_000_000),
        ("0", 0),
    ],
)
def test_rates_are_read(text: str, bytes_per_s: int) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["200Mb/s", "200mb/s", "1Gbps", "fast", "", "-1", "1iB/s"])
def test_rates_that_could_mean_bits_or_bytes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a rate such as 200MB/s"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 << 20, "1.5 GiB"),
        (123456789, "118 MiB"),
        ((1 << 30) - 1, "1 GiB"),
    ],
)
def test_sizes_are_written(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_written_size_is_read_back_to_three_digits(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.006)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_written_rate_is_read_back_to_three_digits(bytes_per_s: int) -> None:
    assert parse_rate(format_rate(bytes_per_s)) == pytest.approx(bytes_per_s, rel=0.006)


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0 ms"),
        (0.4217, "0.422 ms"),
        (35.0, "35 ms"),
        (999.9, "1000 ms"),
        (2500.0, "2.5 s"),
        (185_000.0, "3 min 5 s"),
        (7_260_000.0, "2 h 1 min"),
    ],
)
def test_durations_are_written(duration_ms: float, text: str) -> None:
    assert format_ms(duration_ms) == text
