"""Making an instance of an enclave: which one it is, its memory, its process.

One is made by launching or by receiving, or taken up from an earlier agent of the same directory.
"""

from pathlib import Path

import trio

from optmigd.enclave_shim import abi, image, policy
from optmigd.enclave_shim.abi import Command, Mode
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.kept import KeeperClient, KeptProcess
from optmigd.enclave_shim.migration.common import Enclave, Identity
from optmigd.enclave_shim.platforms import Platform
from optmigd.enclave_shim.preflight import DigestCache
from optmigd.enclave_shim.process import Process
from optmigd.enclave_shim.remembered import InstanceNote, Memory
from optmigd.enclave_shim.starting import Start, attach_process, read_image, start_process
from optmigd.protocol.errors import EnclaveError, RuntimeFailed


async def identify(name: str, image_path: str, policy_text: bytes, platform: Platform) -> Identity:
    """Check an image and a policy, and measure both.

    Raises:
        ImageInvalid, ConfigError: one of them is not what it should be.

    """
    rules = policy.parse(policy_text)
    loaded = await trio.to_thread.run_sync(image.load, image_path)
    measurement = await trio.to_thread.run_sync(loaded.measurement, rules.digest())
    return Identity(name, loaded, rules, policy_text, measurement, platform)


class Maker:
    """Makes instances in a nursery, and notes them in the vault.

    Args:
        nursery: in which processes are followed.
        keeper: whose children they are.
        memory: the vault.
        digests: of this host's files.

    """

    def __init__(
        self, nursery: trio.Nursery, keeper: KeeperClient, memory: Memory, digests: DigestCache
    ) -> None:
        self._nursery = nursery
        self._keeper = keeper
        self._memory = memory
        self._digests = digests

    async def start(
        self,
        identity: Identity,
        mode: Mode,
        memory_bytes: int,
        how: Start,
        io_files: dict[str, Path],
        *,
        generation: int,
    ) -> Enclave:
        """Start a process of the image and wait until it runs, or waits for commands.

        Raises:
            RuntimeFailed: it did not come up; nothing is left of it.

        """
        size_bytes = -(-memory_bytes // abi.PAGE_BYTES) * abi.PAGE_BYTES
        try:
            arena = Arena(size_bytes)
            process = start_process(self._keeper, arena, identity.image, mode, how)
        except (OSError, ValueError) as error:
            raise RuntimeFailed(f"the image could not be started: {error}") from error
        try:
            await self._boot(process)
        except BaseException:
            arena.close()
            raise
        enclave = Enclave(
            identity=identity,
            arena=arena,
            process=process,
            generation=generation,
            own_dir=how.own_dir,
            virtual_dir=how.virtual_dir,
            io_files=io_files,
            digests=self._digests,
        )
        self._note(enclave)
        return enclave

    async def replace(self, enclave: Enclave) -> None:
        """Replace a waiting process that has ended by one at the same restore point.

        Its memory is still there, and it never ran: nothing is lost with it.

        Raises:
            RuntimeFailed: the new one did not come up.

        """
        how = Start(
            name=enclave.identity.name,
            own_dir=enclave.own_dir,
            output=enclave.io_files["output.log"],
            stdin=enclave.io_files["stdin"],
            virtual_dir=enclave.virtual_dir,
        )
        image = enclave.identity.image
        try:
            process = start_process(self._keeper, enclave.arena, image, Mode.RESTORE, how)
        except (OSError, ValueError) as error:
            raise RuntimeFailed(f"the image could not be started: {error}") from error
        await self._boot(process, prepare=True)
        enclave.process = process
        self._note(enclave)

    async def _boot(self, process: Process, *, prepare: bool = False) -> None:
        """Follow a process until it has booted, or is prepared; it is gone where this raises."""
        await self._nursery.start(process.run)
        try:
            await process.booted()
            if prepare:
                await process.command(Command.PREPARE)
        except BaseException:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.exited.wait()
            raise

    def _note(self, enclave: Enclave) -> None:
        self._memory.note_instance(
            InstanceNote(
                pid=enclave.process.pid,
                name=enclave.identity.name,
                policy=enclave.identity.policy_text,
                measurement=enclave.identity.measurement,
                generation=enclave.generation,
                own_dir=str(enclave.own_dir),
                virtual_dir=enclave.virtual_dir,
                io_files={name: str(path) for name, path in enclave.io_files.items()},
                tracker_errno=enclave.process.tracker_errno,
            )
        )

    async def take_up(self, kept: KeptProcess, note: InstanceNote, platform: Platform) -> Enclave:
        """Go on with an instance that an earlier agent has made.

        Raises:
            EnclaveError: it is not what was noted.

        """
        rules = policy.parse(note.policy)
        content = await trio.to_thread.run_sync(read_image, kept)
        loaded = image.parse(content, note.name)
        measurement = await trio.to_thread.run_sync(loaded.measurement, rules.digest())
        if measurement != note.measurement:
            raise EnclaveError("the image in memory is not the one that was measured")
        process = attach_process(self._keeper, kept, note.tracker_errno)
        await self._nursery.start(process.run)
        return Enclave(
            identity=Identity(note.name, loaded, rules, note.policy, measurement, platform),
            arena=process.arena,
            process=process,
            generation=note.generation,
            own_dir=Path(note.own_dir),
            virtual_dir=note.virtual_dir,
            io_files={name: Path(path) for name, path in note.io_files.items()},
            digests=self._digests,
        )
