"""One cell of the crash matrix: a real migration of a real program, one boundary, one fault."""

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from optmigd.conversation import DaemonUnreachable
from optmigd.protocol.errors import HandoffUncertain, OptmigError, UnknownEnclave
from tests.faults.evidence import Ledger, LedgerWork, Work
from tests.faults.gate import Boundary
from tests.faults.hosts import Faulty, FaultyHost, alive

MEMORY_BYTES = 256 << 20
REACH_TIMEOUT_S = 90.0
AFTER_ANSWER_S = 15.0
"""The last boundaries of a migration come after its caller has been answered."""
FAULT_S = 1.5
"""How long a freeze or a full disk lasts."""
SETTLE_TIMEOUT_S = 90.0
OPERATOR_AFTER_S = 8.0
"""When a released enclave's destination is dead, the operator gives up after so long."""
CALL_TIMEOUT_S = 60.0
END_TIMEOUT_S = 300.0
"""How long a program may compute on after a cell."""

FAULTS = (
    "kill daemon alpha",
    "kill daemon beta",
    "kill agent alpha",
    "kill agent beta",
    "kill program alpha",
    "kill program beta",
    "cut link",
    "cut data",
    "freeze daemon alpha",
    "freeze daemon beta",
    "freeze agent alpha",
    "freeze agent beta",
    "full alpha",
    "full beta",
)

QUICKLY: dict[str, Any] = {"downtime_limit_ms": 5000, "on_stall": "switch"}

T = TypeVar("T")
View = dict[str, Any]


class Stuck(Exception):
    """A call to a daemon did not return."""


@dataclass
class Cell:
    """What happened: `violations` is empty if every rule was kept."""

    boundary: Boundary
    faults: tuple[str, ...]
    outcome: str = "?"
    released: bool = False
    caller: str = ""
    settle_s: float = 0.0
    total_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its boundary and its fault."""
        return f"{self.boundary} x {' + '.join(self.faults)}"


def within(call: Callable[[], T], timeout_s: float = CALL_TIMEOUT_S) -> T:
    """Call, and wait for the end only so long.

    Raises:
        Stuck: it has not returned.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise Stuck(f"a daemon has not answered within {timeout_s:.0f} s")
    return results[0]


class Trial:
    """One enclave's life in one cell."""

    def __init__(self, hosts: Faulty, work: Work, enclave: str) -> None:
        self.hosts = hosts
        self.enclave = enclave
        self._work = work
        self._keeps_ledger = isinstance(work, LedgerWork)
        self.ledger = Ledger(hosts.folder / f"shared-{enclave}")
        self._image = hosts.folder / f"image-{enclave}"
        self._caller: list[str] = []
        self._undo: list[Callable[[], None]] = []
        self._lasts = False
        self._thread: threading.Thread | None = None

    # ---- the course of a cell ----

    def launch(self) -> None:
        """Start the program on alpha, in an image that no host has seen yet."""
        self.ledger.folder.mkdir()
        # Bytes after the loadable segments: another file, the same measurement.
        self._image.write_bytes(self._work.program.image.read_bytes() + self.enclave.encode())
        self.hosts.alpha.client.launch(
            self._image,
            enclave=self.enclave,
            memory_bytes=MEMORY_BYTES,
            shared=[self.ledger.folder],
            args=self._work.arguments(self.ledger),
        )
        if self._keeps_ledger:
            self._wait(lambda: self.ledger.steps() > 20, 20.0)

    def begin(self, boundary: Boundary | None) -> None:
        """Begin to migrate; whoever comes to the boundary is held there."""
        self.hosts.gate.begin(boundary)
        self._thread = threading.Thread(target=self._migrate, daemon=True)
        self._thread.start()

    def reaches_boundary(self) -> bool:
        """Wait until somebody stands at the boundary; False if it ends before, or hangs."""
        deadline_s = time.monotonic() + REACH_TIMEOUT_S
        while not self.hosts.gate.wait_held(0.2):
            if time.monotonic() > deadline_s:
                return False
            if self._thread is not None and not self._thread.is_alive():
                # What comes after the caller's answer is a boundary, too.
                return self.hosts.gate.wait_held(AFTER_ANSWER_S)
        return True

    def whereabouts(self) -> str:
        """How far the migration has come, for a message."""
        way = ", ".join(map(str, self.hosts.gate.trace))
        with suppress(OptmigError, Stuck):
            status = within(lambda: self.hosts.alpha.client.status(self.enclave))
            return f"the caller was told {self._caller}, it came by {way}, alpha says {status}"
        return f"the caller was told {self._caller}, it came by {way}, alpha says nothing"

    def strike(self, fault: str) -> bool:
        """Do harm; False if there is nothing to be harmed now."""
        kind, _, rest = fault.partition(" ")
        if kind == "cut":
            preamble = b"OPTMIGL1" if rest == "link" else b"OPTMIGD1"
            return self.hosts.beta.proxy.cut(preamble) > 0
        if kind == "full":
            path = self.hosts.host(rest).disk_full
            path.touch()
            self._undo.append(lambda: path.unlink(missing_ok=True))
            self._lasts = True
            return True
        what, _, name = rest.partition(" ")
        host = self.hosts.host(name)
        if what == "daemon":
            if not host.running():
                return False
            if kind == "kill":
                host.kill()
                self._undo.append(host.start)
            else:
                self._freeze(host.pid)
            return True
        struck = False
        for pid in self._victims(what, host):
            with suppress(ProcessLookupError):  # it has ended by itself
                if kind == "kill":
                    os.kill(pid, signal.SIGKILL)
                    self._wait(lambda pid=pid: not alive(pid), 5.0)  # type: ignore[misc]
                else:
                    self._freeze(pid)
                struck = True
        return struck

    def mend(self) -> None:
        """Undo what does not last for ever: thaw, give space back, start daemons again."""
        if self._lasts:
            time.sleep(FAULT_S)  # the length of the fault
        for undo in self._undo:
            undo()
        self._undo.clear()

    def settle(self, cell: Cell) -> None:
        """Wait until both hosts have come to an end with it, and note the outcome."""
        begun_s = time.monotonic()
        given_up = False
        while True:
            views = self._views()
            cell.released = cell.released or self._released()
            if self._settled(views):
                break
            waited_s = time.monotonic() - begun_s
            if waited_s > SETTLE_TIMEOUT_S:
                cell.violations.append(f"never settled: {_brief(views)}")
                break
            if waited_s > OPERATOR_AFTER_S and not given_up and self._lost_after_release(views):
                given_up = True
                self._give_up()
                cell.caller += " (operator gave up)"
            time.sleep(0.1)  # a poll: two daemons and their agents come to rest
        cell.settle_s = time.monotonic() - begun_s
        states = {name: view["state"] if view else "" for name, view in views.items()}
        ended = [view["exit_status"] for view in views.values() if view]
        if self._work.exit_status in ended and not self._keeps_ledger:
            cell.outcome = "ended"
        elif "running" in states.values():
            cell.outcome = "A" if states["alpha"] == "running" else "B"
        else:
            cell.outcome = "dead"
        if list(states.values()).count("running") > 1:
            cell.violations.append(f"two owners: {_brief(views)}")

    def judge(self, cell: Cell) -> None:
        """Compare what both hosts, the caller and the program say."""
        cell.caller = " ".join([*self._caller, cell.caller]).strip()
        self._judge_agreement(cell)
        self._judge_processes(cell)
        if cell.outcome == "dead":
            self._judge_death(cell)
        if self._keeps_ledger and (wrong := self.ledger.fault()):
            cell.violations.append(wrong)

    def finish(self, cell: Cell) -> None:
        """Move it once more, end it, and compare its answer with a native run."""
        # What has ended is asked for where it began: the question is passed on.
        here = self.hosts.beta if cell.outcome == "B" else self.hosts.alpha
        there = self.hosts.other(here)
        moved = False
        try:
            within(lambda: here.client.migrate(self.enclave, there.name, **QUICKLY))
            moved = True
        except (OptmigError, Stuck) as error:
            if self._keeps_ledger or here.client.status(self.enclave)["state"] != "exited":
                cell.violations.append(f"the retry failed: {error}")
        self.ledger.stop.touch()
        try:
            ends = [within(lambda: here.client.wait(self.enclave), END_TIMEOUT_S)]
            if moved:  # else it had ended, and only the host that it ended on knows it
                ends.append(within(lambda: there.client.wait(self.enclave)))
            output = within(lambda: b"".join(here.client.logs(self.enclave)))
        except (OptmigError, Stuck) as error:
            cell.violations.append(f"its end cannot be asked: {error}")
            return
        if {end["exit_status"] for end in ends} != {self._work.exit_status}:
            cell.violations.append(f"it ended with {ends}")
        if self._keeps_ledger and (wrong := self.ledger.fault()):
            cell.violations.append(wrong)
        expected = self._work.answer(self.ledger)
        if expected not in output.decode().splitlines():
            cell.violations.append(f"expected {expected!r}, found {output[-500:]!r}")

    def leave(self) -> None:
        """Remove its files; the enclave itself ends with its hosts, if it has not ended."""
        self.hosts.gate.open()
        self.ledger.stop.parent.mkdir(exist_ok=True)
        self.ledger.stop.touch()
        for undo in self._undo:
            with suppress(RuntimeError, FileNotFoundError, ProcessLookupError):
                undo()
        shutil.rmtree(self.ledger.folder)
        self._image.unlink(missing_ok=True)

    # ---- doing ----

    def _migrate(self) -> None:
        try:
            # Few rounds on any machine: what matters here is where it stops, not how fast it is.
            self.hosts.alpha.client.migrate(self.enclave, "beta", **QUICKLY)
        except OptmigError as error:
            self._caller.append(error.code)
        else:
            self._caller.append("completed")

    def _freeze(self, pid: int) -> None:
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
        self._lasts = True

        def thaw() -> None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)

        self._undo.append(thaw)

    def _victims(self, what: str, host: FaultyHost) -> list[int]:
        if what == "agent":
            pid = host.agent_pid(self.enclave)
            return [] if pid is None else [pid]
        programs = self.hosts.programs(self.enclave)
        return [pid for pid, name in programs.items() if name == host.name]

    def _give_up(self) -> None:
        """What an operator decides when the destination has lost what was released to it."""
        client = self.hosts.alpha.client
        within(lambda: client.recover(self.enclave, decision="give-up", confirmed=True))

    # ---- looking ----

    def _views(self) -> dict[str, View | None]:
        views: dict[str, View | None] = {}
        for host in (self.hosts.alpha, self.hosts.beta):
            listed = within(host.client.list_enclaves)
            mine = [view for view in listed if view["enclave"] == self.enclave]
            views[host.name] = dict(mine[0]) if mine else None
        return views

    def _settled(self, views: dict[str, View | None]) -> bool:
        if self._thread is not None and self._thread.is_alive():
            return False
        alpha, beta = (view and view["state"] for view in views.values())
        return (alpha, beta) in {
            ("running", None),
            ("moved", "running"),
            ("exited", None),
            ("moved", "exited"),
            ("lost", None),
            ("running", "running"),
        }

    def _released(self) -> bool:
        journal = self.hosts.alpha.folder / "state/journal.db"
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
            rows = connection.execute(
                "SELECT token FROM migrations WHERE role = 'source' AND enclave = ?",
                (self.enclave,),
            ).fetchall()
        return any(token is not None for (token,) in rows)

    def _lost_after_release(self, views: dict[str, View | None]) -> bool:
        alpha = views["alpha"]
        nobody = "beta" not in self.hosts.programs(self.enclave).values()
        return self._released() and nobody and alpha is not None and alpha["state"] == "migrating"

    # ---- judging ----

    def _judge_agreement(self, cell: Cell) -> None:
        """Both hosts say the same of it, and the caller was told nothing else."""
        said = self._said_by_both()
        if len(set(said)) != 1:
            said = self._said_by_both()  # the program may have ended between the two questions
        if len(set(said)) != 1:
            cell.violations.append(f"the hosts disagree: {said}")
        told = self._caller[0] if self._caller else "nothing"
        if told == "completed" and (cell.outcome == "A" or not cell.released):
            cell.violations.append(f"the caller was told {told}, but it runs on alpha")
        certain = told not in ("completed", HandoffUncertain.code, DaemonUnreachable.code)
        if certain and cell.outcome == "B":
            cell.violations.append(f"the caller was told {told}, but it runs on beta")

    def _said_by_both(self) -> list[tuple[str, str, int | None]]:
        """State, host and exit status as each host gives them; a host may never have had it."""
        said = []
        for host in (self.hosts.alpha, self.hosts.beta):
            with suppress(UnknownEnclave):
                status = within(lambda h=host: h.client.status(self.enclave))  # type: ignore[misc]
                said.append((status["state"], status["host"], status["exit_status"]))
        return said

    def _judge_processes(self, cell: Cell) -> None:
        """Exactly one process of the program is left, on the right host, and it goes on."""
        expected = {"A": ["alpha"], "B": ["beta"]}.get(cell.outcome, [])
        if not self._wait(lambda: self._names() == expected or self._ended_meanwhile(), 15.0):
            cell.violations.append(f"expected processes on {expected}, found {self._names()}")
        if expected and self._keeps_ledger:
            steps = self.ledger.steps()
            if not self._wait(lambda: self.ledger.steps() > steps, 10.0):
                cell.violations.append("it stands still")

    def _ended_meanwhile(self) -> bool:
        """Whether it is a program that ends by itself, and has, as it should."""
        ends = {(state, status) for state, _, status in self._said_by_both()}
        return not self._keeps_ledger and ends == {("exited", self._work.exit_status)}

    def _names(self) -> list[str]:
        return sorted(self.hosts.programs(self.enclave).values())

    def _judge_death(self, cell: Cell) -> None:
        """It may die only with its own program."""
        if f"kill program {'beta' if cell.released else 'alpha'}" not in cell.faults:
            cell.violations.append("it was lost")

    def _wait(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.03)  # a poll: no event tells
        return True


def _brief(views: dict[str, View | None]) -> dict[str, str]:
    return {name: str(view["state"]) if view else "absent" for name, view in views.items()}


def run_cell(
    hosts: Faulty,
    work: Work,
    enclave: str,
    boundary: Boundary,
    faults: tuple[str, ...],
    gap_s: float = 0.0,
) -> Cell:
    """Run one cell.

    Args:
        hosts: at rest.
        work: what moves.
        enclave: a name that these hosts have not heard.
        boundary: where the first fault strikes.
        faults: one or two.
        gap_s: how long after the first the second one strikes, with everybody let on; 0: at the
            boundary, too.
    """
    cell = Cell(boundary, faults)
    begun_s = time.monotonic()
    trial = Trial(hosts, work, enclave)
    try:
        trial.launch()
        trial.begin(boundary)
        if not trial.reaches_boundary():
            cell.outcome = "not reached"
            cell.violations.append(f"the boundary was not reached: {trial.whereabouts()}")
            return cell
        struck = [trial.strike(faults[0])]
        if gap_s:
            hosts.gate.open()
            time.sleep(gap_s)  # the instant of the second fault
        struck += [trial.strike(fault) for fault in faults[1:]]
        hosts.gate.open()
        trial.mend()
        if not any(struck):
            cell.outcome = "-"
            trial.ledger.stop.touch()
            trial.settle(Cell(boundary, faults))
            return cell
        trial.settle(cell)
        trial.judge(cell)
        if cell.outcome != "dead":
            trial.finish(cell)
    except (OptmigError, Stuck, RuntimeError) as error:
        cell.violations.append(f"{type(error).__name__}: {error}")
    finally:
        cell.total_s = time.monotonic() - begun_s
        for host in (hosts.alpha, hosts.beta):
            crashed = host.crashed_agents(enclave)
            cell.violations += [f"an agent of {host.name} crashed: {end}" for end in crashed]
        trial.leave()
    return cell


def trace_of(hosts: Faulty, work: Work, enclave: str) -> list[Boundary]:
    """Every boundary of one undisturbed migration, in the order in which they were reached."""
    trial = Trial(hosts, work, enclave)
    cell = Cell(Boundary("", "", ""), ())
    try:
        trial.launch()
        trial.begin(None)
        trial.settle(cell)
        trace = list(hosts.gate.trace)
        trial.judge(cell)
        trial.finish(cell)
    finally:
        trial.leave()
    assert not cell.violations, cell.violations
    assert cell.outcome == "B", cell.outcome
    return trace
