"""The daemons of a benchmark end with it, however it ends."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from optmigd.bench import hosts

BENCHMARK = textwrap.dedent(
    """
    import signal
    import time
    from optmigd.bench.hosts import two_hosts

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with two_hosts() as (alpha, beta, folder):
        print(alpha.process.pid, beta.process.pid, folder, flush=True)
        time.sleep(600)
    """
)


def test_a_daemon_that_does_not_answer_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "STOP_TIMEOUT_S", 1.0)
    host = hosts.start_host("alpha", tmp_path / "alpha")
    host.process.send_signal(signal.SIGSTOP)
    hosts.stop_host(host)
    assert host.process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_benchmark_that_is_ended_leaves_no_daemon_and_no_folder(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BENCHMARK],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as benchmark:
        assert benchmark.stdout is not None
        first, second, folder = benchmark.stdout.readline().split()
        benchmark.send_signal(how)
        try:
            assert benchmark.wait(60) != 0
        finally:
            benchmark.terminate()
    for pid in (int(first), int(second)):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not Path(folder).exists()
