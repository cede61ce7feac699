"""A host without an honest shim poses as one: its evidence is old, another's, another role's.

The test speaks the whole protocol of the missing shim, Noise keys included, to a real agent. The
`sim` platform's development root is public, so it can sign what it likes: what is refused here is
refused because of what the evidence says, or because of what it is bound to.
"""

import hashlib
import os
from collections.abc import Callable

import pytest
import trio

from optmigd.enclave_shim.image import load
from optmigd.enclave_shim.platforms.sim import DEVELOPMENT_ROOT_LABEL, SimPlatform
from optmigd.enclave_shim.policy import parse
from optmigd.protocol.session import (
    Answer,
    Established,
    Proposal,
    Refuse,
    Role,
    RoundDone,
    SessionBinding,
    SessionChannel,
    SessionReceived,
    report_data,
)
from optmigd.protocol.session_messages import SessionMessage
from tests.attacks.hostile import HostileMove, Victim
from tests.support.agents import DESTINATION_HOST, SOURCE_HOST, AgentHandle, Message

ROOT = hashlib.sha256(DEVELOPMENT_ROOT_LABEL).digest()
MakeEvidence = Callable[[SimPlatform, bytes, bytes], bytes]
"""Gets the platform, the right measurement and the right report data."""


class Impostor:
    """The protocol of one shim, played by the test against the other side's real agent."""

    def __init__(self, victim: Victim, move: HostileMove, role: Role, make: MakeEvidence) -> None:
        """Pose as the shim of that role."""
        image = load(str(victim.program.image))
        self.measurement = image.measurement(parse(b"").digest())
        self.platform = SimPlatform(ROOT)
        self.seen: list[SessionMessage] = []
        self.changed = trio.Event()
        self._agent = move.destination if role == "source" else move.source
        self._migration_id = move.migration_id
        self.channel = SessionChannel(
            role=role,
            ephemeral_private=os.urandom(32),
            static_private=os.urandom(32),
            binding=SessionBinding(
                move.migration_id, SOURCE_HOST, DESTINATION_HOST, parse(b"").digest()
            ),
            make_evidence=lambda data: make(self.platform, self.measurement, data),
            appraise=lambda evidence, data: self.evidence.append(evidence),
        )
        self.evidence: list[bytes] = []
        self._send, self._arrived = trio.open_memory_channel[bytes](100)
        self._agent.on_event = self._on_event

    def _on_event(self, event: str, params: Message) -> None:
        if event == "session":
            self._send.send_nowait(params["payload"])

    async def deliver(self, payloads: list[bytes]) -> None:
        """Send payloads to the agent."""
        for payload in payloads:
            await self._agent.notify("session", migration_id=self._migration_id, payload=payload)

    async def say(self, message: SessionMessage) -> None:
        """Send a message, sealed as the true shim would."""
        await self.deliver(self.channel.send(message))

    async def run(self) -> None:
        """Shake hands and take what comes."""
        await self.deliver(self.channel.start())
        async for payload in self._arrived:
            events, answers = self.channel.receive(payload)
            await self.deliver(answers)
            for event in events:
                if isinstance(event, SessionReceived):
                    self.seen.append(event.message)
                assert isinstance(event, Established | SessionReceived)
            self.changed.set()
            self.changed = trio.Event()

    async def next(self, kind: type[SessionMessage]) -> SessionMessage:
        """Wait for the agent's next message of a kind."""
        while True:
            found = [message for message in self.seen if isinstance(message, kind)]
            if found:
                return found[-1]
            await self.changed.wait()


def _true(platform: SimPlatform, measurement: bytes, data: bytes) -> bytes:
    return platform.evidence(measurement, data)


def _changed(evidence: bytes) -> bytes:
    return evidence[:-1] + bytes([evidence[-1] ^ 1])


FORGERIES: dict[str, MakeEvidence] = {
    "of-an-earlier-session": lambda p, m, d: p.evidence(m, os.urandom(64)),
    "of-another-program": lambda p, m, d: p.evidence(bytes(32), d),
    "of-a-debug-enclave": lambda p, m, d: SimPlatform(ROOT, debug=True).evidence(m, d),
    "signed-by-another-root": lambda p, m, d: SimPlatform(bytes(32)).evidence(m, d),
    "changed": lambda p, m, d: _changed(p.evidence(m, d)),
    "none": lambda p, m, d: b"",
}


async def _impose(
    victim: Victim, role: Role, make: MakeEvidence, source: AgentHandle, destination: AgentHandle
) -> Message:
    """Have the real agent of the other role meet the impostor; its `ended`."""
    move = victim.hostile(source, destination)
    impostor = Impostor(victim, move, role, make)
    met = destination if role == "source" else source
    async with trio.open_nursery() as nursery:
        await (move.order_receive() if role == "source" else move.order_export())
        nursery.start_soon(impostor.run)
        ended = await met.wait_event("ended")
        nursery.cancel_scope.cancel()
    return ended


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_the_source_gives_nothing_to_an_impostor(victim: Victim, forgery: str) -> None:
    async with victim.hosts(1) as (source,):
        ended = await _impose(victim, "destination", FORGERIES[forgery], source, source)
        code = "remote-protocol" if forgery == "none" else "attestation-failed"
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", code)
        assert await source.runs()


@pytest.mark.parametrize("forgery", ["of-an-earlier-session", "of-another-program"])
async def test_the_destination_takes_nothing_from_an_impostor(victim: Victim, forgery: str) -> None:
    async with victim.hosts(2) as (source, destination):
        ended = await _impose(victim, "source", FORGERIES[forgery], source, destination)
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "attestation-failed")
        await victim.stands_unharmed(source, destination)


async def test_evidence_of_the_other_role(victim: Victim) -> None:
    """The source's own kind of evidence, over the right handshake, does not make a destination."""
    async with victim.hosts(1) as (source,):
        impostors: list[Impostor] = []

        def reflected(platform: SimPlatform, measurement: bytes, data: bytes) -> bytes:
            hash_ = impostors[0].channel._handshake.hash_before_payload
            assert report_data("destination", hash_) == data
            return platform.evidence(measurement, report_data("source", hash_))

        move = victim.hostile(source, source)
        impostors.append(Impostor(victim, move, "destination", reflected))
        async with trio.open_nursery() as nursery:
            await move.order_export()
            nursery.start_soon(impostors[0].run)
            ended = await source.wait_event("ended")
            nursery.cancel_scope.cancel()
        assert ended["error"]["code"] == "attestation-failed"


async def test_evidence_of_an_honest_instance_handed_on(victim: Victim) -> None:
    """The host runs an honest destination, and takes its evidence for a session of its own."""
    async with victim.hosts(2) as (source, destination):
        move = victim.hostile(source, destination)
        to_honest = Impostor(victim, move, "source", _true)
        async with trio.open_nursery() as nursery:
            await move.order_receive()
            nursery.start_soon(to_honest.run)
            while not to_honest.evidence:
                await to_honest.changed.wait()
            nursery.cancel_scope.cancel()
        (fresh,) = to_honest.evidence
        async with trio.open_nursery() as nursery:
            posing = Impostor(victim, move, "destination", lambda p, m, d: fresh)
            await move.order_export()
            nursery.start_soon(posing.run)
            ended = await source.wait_event("ended")
            nursery.cancel_scope.cancel()
        assert ended["error"]["code"] == "attestation-failed"
        assert "not bound to this session" in ended["error"]["message"]
        await destination.request("cancel", migration_id=move.migration_id)


ANSWERS: dict[str, Callable[[Proposal, Answer], SessionMessage]] = {
    "unknown-cipher": lambda p, a: replace_answer(a, cipher="none"),
    "no-cipher": lambda p, a: replace_answer(a, cipher=""),
    "larger-records": lambda p, a: replace_answer(a, record_bytes=p.record_bytes * 2),
    "a-round-that-never-was": lambda p, a: RoundDone(0, 0, 0, bytes(32)),
}


def replace_answer(answer: Answer, **changed: object) -> Answer:
    """The answer with other fields."""
    return Answer(**{name: getattr(answer, name) for name in answer.__struct_fields__} | changed)


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_downgrade_in_the_answer(victim: Victim, answer: str) -> None:
    """Even a peer that was accepted cannot make the source use what it did not propose."""
    async with victim.hosts(1) as (source,):
        move = victim.hostile(source, source)
        impostor = Impostor(victim, move, "destination", _true)
        async with trio.open_nursery() as nursery:
            await move.order_export()
            nursery.start_soon(impostor.run)
            proposal = await impostor.next(Proposal)
            assert isinstance(proposal, Proposal)
            good = Answer(proposal.ciphers[0], proposal.record_bytes, [], bytes(32))
            await impostor.say(ANSWERS[answer](proposal, good))
            ended = await source.wait_event("ended")
            nursery.cancel_scope.cancel()
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "remote-protocol")
        assert await source.runs()


async def test_a_downgrade_in_the_proposal(victim: Victim) -> None:
    """A source that offers nothing but an unknown cipher gets a blocker, and no instance."""
    async with victim.hosts(2) as (source, destination):
        genuine = victim.hostile(source, destination)
        impostor = Impostor(victim, genuine, "destination", _true)
        async with trio.open_nursery() as nursery:
            await genuine.order_export()
            nursery.start_soon(impostor.run)
            found = await impostor.next(Proposal)
            assert isinstance(found, Proposal)
            await impostor.say(Refuse("failed", "seen enough"))
            await source.wait_event("ended")
            nursery.cancel_scope.cancel()
        fields = {n: getattr(found, n) for n in found.__struct_fields__} | {"ciphers": ["none"]}
        posing = Impostor(victim, genuine, "source", _true)
        async with trio.open_nursery() as nursery:
            await genuine.order_receive()
            nursery.start_soon(posing.run)
            while not posing.channel.established:
                await posing.changed.wait()
            await posing.say(Proposal(**fields))
            ended = await destination.wait_event("ended")
            nursery.cancel_scope.cancel()
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "blocked")
        await victim.stands_unharmed(source, destination)
