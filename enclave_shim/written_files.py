"""What the program has written into its files since that was last asked.

Its runtime sets one byte per block before a call that changes a file (or after it, where the place
is known only then), and notes the call in a slot while it is under way; `runtime/written.c` says
why both. **The order** here: clear the marks that were read as set; full barrier; read the slots;
only then may the caller look at the files. What stood in a slot counts once more the next time.

What the program changes is complete, then; what anybody else does to its files is not in here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optmigd.enclave_shim import abi, linux
from optmigd.enclave_shim.arena import Arena, Control, count_pages
from optmigd.enclave_shim.tracker import find_marks, take_marks

_ANY_INODE = _END = 2**64 - 1
_NO_MARKS = np.zeros((2, abi.FILE_MARKS), dtype=np.bool_)


@dataclass(frozen=True)
class _UnderWay:
    """A call that may still write between two offsets of a file, in bytes."""

    inode: int
    start: int
    end: int


class Written:
    """What was written until the files may be looked at.

    Args:
        marks: whether the bytes of the runtime's table were set; the table twice, one behind the
            other, because a file that begins late in it goes on at its front.
        whole: the same for whole files, once.
        under_way: calls that were not over then, or not when this was asked before.

    """

    def __init__(
        self, marks: NDArray[np.bool_], whole: NDArray[np.bool_], under_way: list[_UnderWay]
    ) -> None:
        self._marks = marks
        self._whole = whole
        self._under_way = under_way

    def whole(self, inode: int) -> bool:
        """Whether that file was changed otherwise than by writing some of its blocks."""
        return bool(self._whole[_home(inode) % abi.FILE_WHOLE_MARKS])

    def blocks(self, inode: int, count: int) -> NDArray[np.bool_]:
        """Which of the first `count` blocks of that file (`abi.FILE_BLOCK_BYTES`) were written."""
        found = self._marks[_home(inode) :][: abi.FILE_MARKS]
        found = found[:count] if count <= abi.FILE_MARKS else np.resize(found, count)
        calls = [call for call in self._under_way if call.inode in (inode, _ANY_INODE)]
        if calls:
            found = found.copy()
        for call in calls:
            first, last = (at // abi.FILE_BLOCK_BYTES for at in (call.start, call.end))
            found[min(first, count) : min(last + 1, count)] = True
        return found


class WrittenFiles:
    """Reads a program's marks, for one migration.

    Args:
        ctl, arena: of its process.

    """

    def __init__(self, ctl: Control, arena: Arena) -> None:
        self._ctl = ctl
        self._arena = arena
        self._under_way: list[_UnderWay] = []

    def watch(self) -> None:
        """Have everything marked from now on; before any file is looked at.

        Raises:
            OSError: the kernel has no membarrier (Linux 4.16 or later has).
        """
        self._ctl["files_watched"] = 1
        linux.full_barrier()

    def unwatch(self) -> None:
        """Let the program write without marks again."""
        self._ctl["files_watched"] = 0

    def take(self) -> Written:
        """Return what was written since the last call, or since before `watch`."""
        marks = _NO_MARKS
        if len(runs := take_marks(self._ctl.file_marks)):
            marks = np.zeros_like(_NO_MARKS)
            for first, count in runs.tolist():
                marks[:, first : first + count] = True
        whole = self._ctl.file_whole_marks != 0
        self._ctl.file_whole_marks[whole] = 0
        linux.full_barrier()
        before, self._under_way = self._under_way, self._read_slots()
        return Written(marks.ravel(), whole, before + self._under_way)

    def pending_blocks(self) -> int:
        """How many blocks were written since they were last taken."""
        return count_pages(find_marks(self._ctl.file_marks))

    def _read_slots(self) -> list[_UnderWay]:
        state = self._arena.rt_state
        slots = np.concatenate((state["writings"], state["threads"]["writing"]))
        slots = slots[(slots["used"] != 0) & (slots["bytes"] != 0)]
        return [
            _UnderWay(inode, start, min(start + length, _END))
            for inode, start, length in slots[["inode", "from", "bytes"]].tolist()
        ]


def _home(inode: int) -> int:
    """Where a file begins in the table."""
    return (inode * abi.FILE_MARKS_FACTOR & _END) >> abi.FILE_MARKS_SHIFT
