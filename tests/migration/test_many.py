"""Several real enclaves at once between the same hosts, in both directions."""

import subprocess
import threading
from pathlib import Path
from typing import Any

from optmigd.bench.hosts import Host
from tests.conftest import BuildProgram

ENCLAVES = 4


def test_four_enclaves_change_places_at_once_and_none_loses_its_way(
    pair: tuple[Host, Host], program: BuildProgram
) -> None:
    stepper = program("stepper")
    homes = [(pair[number % 2], pair[1 - number % 2]) for number in range(ENCLAVES)]
    for number, (here, _) in enumerate(homes):
        here.client.launch(
            stepper.image, enclave=f"many-{number}", memory_bytes=128 << 20, args=("0",)
        )
    moved: dict[int, Any] = {}

    def move(number: int, here: Host, there: Host) -> None:
        moved[number] = here.client.migrate(f"many-{number}", there.name, on_stall="switch")

    threads = [
        threading.Thread(target=move, args=(number, here, there))
        for number, (here, there) in enumerate(homes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [moved[number]["state"] for number in range(ENCLAVES)] == ["completed"] * ENCLAVES
    for number, (here, there) in enumerate(homes):
        own_directory = Path(there.client.status(f"many-{number}")["dir"] or "")
        (own_directory / "stop").touch()
        assert here.client.wait(f"many-{number}") == {"exit_status": 0, "host": there.name}
        output = b"".join(here.client.logs(f"many-{number}")).decode()
        steps, answer = output.splitlines()[-2:]
        native = subprocess.run(
            [stepper.native, steps.split()[1]], check=True, capture_output=True, text=True
        )
        assert native.stdout.splitlines()[-1] == answer
    for host in pair:
        log = (host.folder / "daemon.log").read_text()
        assert log.count("switchover_turn_taken") == ENCLAVES // 2
        assert "switchover_turn_unused" not in log
        assert "peers_turn_not_taken" not in log


def test_a_slow_migration_is_made_fast_under_way(
    pair: tuple[Host, Host], program: BuildProgram
) -> None:
    """At 10 kB/s its 4 MiB would take longer than the test may."""
    alpha, beta = pair
    alpha.client.launch(
        program("stepper").image, enclave="slow", memory_bytes=128 << 20, args=("0",)
    )
    outcome: list[Any] = []
    started = threading.Event()

    def move() -> None:
        def heard(event: dict[str, Any]) -> None:
            if event.get("state") == "active":
                started.set()

        outcome.append(
            alpha.client.migrate(
                "slow", "beta", max_bandwidth=10_000, on_stall="switch", on_event=heard
            )
        )

    thread = threading.Thread(target=move)
    thread.start()
    assert started.wait(60)
    changed = alpha.client.change("slow", max_bandwidth=0, downtime_limit_ms=500)
    assert changed["max_bandwidth"] == 0
    thread.join(60)
    assert outcome
    assert outcome[0]["state"] == "completed"
    beta.client.stop("slow")
