"""`python -m optmigd.enclave_shim --dir INSTANCE_DIR`: runs one shim agent under its keeper.

Agent and keeper hold plaintext and keys, so before anything else debuggers and core files are shut
out. What the agent needs is imported in the forked process only: the keeper stays small.
"""

import argparse
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from optmigd.enclave_shim import linux
from optmigd.enclave_shim.keeper import Keeper, Work
from optmigd.enclave_shim.kept import Inheritance


def main(arguments: Sequence[str] | None = None, work: Work | None = None) -> int:
    """Keep an agent running until it is told to shut down; returns its exit status.

    Args:
        arguments: of the command line; those of this process if None.
        work: the agent; the shim agent if None.

    """
    parser = argparse.ArgumentParser(prog="optmigd.enclave_shim", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the instance's directory")
    parser.add_argument("--ready-fd", type=int, default=-1, help="gets one byte when it serves")
    parser.add_argument("--sim-root", type=Path, help="root key of the sim platform (a file)")
    options = parser.parse_args(arguments)
    directory: Path = options.dir.resolve()
    sim_root: Path | None = options.sim_root and options.sim_root.resolve()

    def shim_agent(inheritance: Inheritance) -> int:
        from optmigd.enclave_shim import worker

        return worker.main(directory, sim_root, inheritance)

    try:
        if options.ready_fd >= 0:
            os.set_inheritable(options.ready_fd, False)
        os.chdir(directory)  # the socket's path may have 107 bytes only
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        linux.forbid_dumps()
        Path("agent.pid").write_text(f"{os.getpid()}\n")
        keeper = Keeper(work or shim_agent, options.ready_fd)
    except OSError as error:
        print(f"optmigd.enclave_shim: {error}", file=sys.stderr)
        return 2
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main())
