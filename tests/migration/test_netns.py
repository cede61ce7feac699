"""Two hosts as two network namespaces joined by veth, with a rate limit (tbf) between them."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host, introduce, start_host, stop_host
from tests.conftest import BuildProgram
from tests.support.journeys import Journey, native_run

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(
        shutil.which("ip") is None or shutil.which("tc") is None,
        reason="ip and tc (Debian: iproute2) are not installed",
    ),
]

RATE_MBIT_S = 400


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def hosts_apart(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Two daemons that reach each other only through a veth pair of 400 Mbit/s."""
    tag = secrets.token_hex(3)
    spaces = (f"optmig-a-{tag}", f"optmig-b-{tag}")
    links = (f"va{tag}", f"vb{tag}")
    addresses = ("10.77.0.1", "10.77.0.2")
    with ExitStack() as cleanup:
        for space in spaces:
            ip("netns", "add", space)
            cleanup.callback(ip, "netns", "del", space)
        ip(
            *("link", "add", links[0], "netns", spaces[0], "type", "veth"),
            *("peer", "name", links[1], "netns", spaces[1]),
        )
        hosts = []
        for space, link, address, name in zip(
            spaces, links, addresses, ("alpha", "beta"), strict=True
        ):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", space, "link", "set", link, "up")
            ip("-n", space, "link", "set", "lo", "up")
            subprocess.run(
                [
                    *("tc", "-n", space, "qdisc", "add", "dev", link, "root", "tbf"),
                    *("rate", f"{RATE_MBIT_S}mbit", "burst", "256kb", "latency", "50ms"),
                ],
                check=True,
            )
            hosts.append(
                start_host(
                    name,
                    tmp_path / name,
                    listen=f"{address}:7411",
                    prefix=("ip", "netns", "exec", space),
                )
            )
            cleanup.callback(stop_host, hosts[-1])
        introduce(hosts)
        yield hosts[0], hosts[1]


def test_a_move_over_a_slow_network(
    program: BuildProgram, hosts_apart: tuple[Host, Host], tmp_path: Path
) -> None:
    # 96 MiB take at least 2 s at 400 Mbit/s; 5 MB/s of it are written all the time.
    args = ["96", "5", "14"]
    built = program("writer")
    expected = native_run(built, args, tmp_path / "native")
    journey = Journey(hosts_apart, "writer", seed=1)
    journey.here.client.launch(built.image, enclave="writer", memory_bytes=512 << 20, args=args)
    for piece in journey.here.client.logs("writer", follow=True):
        if b"filled" in piece:
            break
    journey.move(0.1, verify=True)
    [moved] = journey.moves
    least_ms = 96 * 2**20 * 8 / (RATE_MBIT_S * 1e3)
    assert moved["rounds"][0]["duration_ms"] > 0.8 * least_ms
    assert moved["downtime_ms"] < least_ms / 4, "it was down for a good part of a full copy"
    assert moved["verified"] is True
    assert journey.finish() == expected
