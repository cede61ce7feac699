"""`optmigd`: the daemon's command line. It makes a configuration where there is none."""

import gc
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import click
import structlog
import trio

import optmigd
from optmigd.cli.invocation import Reported, report, run
from optmigd.config import HostIdentity, Settings, create_config, default_paths, load_settings
from optmigd.enclave_shim import linux
from optmigd.exitcodes import ExitCode, exit_code
from optmigd.logs import configure_logging
from optmigd.protocol.errors import OptmigError


@click.group()
@click.version_option(optmigd.__version__, prog_name="optmigd")
def daemon() -> None:
    """The migration daemon of a host."""


def main() -> None:
    """Run `optmigd`."""
    sys.exit(run(daemon, "optmigd"))


@daemon.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file; made, with a fresh host key, if it does not exist.",
)
@click.option("--name", help="Name of this host.")
@click.option("--listen", metavar="ADDR:PORT", help="Where peers connect.")
@click.option("--socket", type=click.Path(path_type=Path), help="Control socket.")
@click.option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path), help="State directory."
)
def serve(
    config: Path | None,
    name: str | None,
    listen: str | None,
    socket: Path | None,
    state_dir: Path | None,
) -> int:
    """Run the daemon until it is told to stop (SIGTERM or Ctrl-C); its enclaves run on.

    Options win over the configuration file, and are written into one that is made.
    """
    settings = prepare(
        config,
        {
            "host.name": name,
            "host.listen": listen,
            "paths.socket": socket,
            "paths.state_dir": state_dir,
        },
    )
    shut_others_out()
    configure_logging(settings.log.level, settings.log.format)
    failed: list[OptmigError] = []
    try:
        trio.run(_serve, settings)
    except* OptmigError as group:
        failed = _leaves(group)
    for error in failed:
        report(error, "optmigd", as_json=False)
    if failed:
        raise Reported(exit_code(failed[0]))
    return ExitCode.OK


def prepare(config: Path | None, overrides: dict[str, Any]) -> Settings:
    """Load the configuration, or make one and say where.

    Raises:
        ConfigError: it is wrong, or cannot be made.
    """
    path = (config or default_paths().config_file).absolute()
    if path.exists():
        return load_settings(path, overrides)
    settings = create_config(path, overrides)
    identity = HostIdentity.load(settings.paths.host_key)
    click.echo(
        f"optmigd: there was no configuration; {path} is new, for a host called "
        f"{settings.host.name}. Its key is in {settings.paths.host_key} ({identity.fingerprint})",
        err=True,
    )
    return settings


def shut_others_out() -> None:
    """Keep this process's memory, which holds the host key, and its files to its own user.

    No core files, no debugger or `/proc/PID/mem` for processes without privilege, and no new file
    that others could read, whatever this process was started with.

    Raises:
        OSError: the kernel refuses.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.forbid_dumps()


async def _serve(settings: Settings) -> None:
    log = structlog.get_logger()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(optmigd.serve, settings)
            gc.freeze()  # a collection that looks through all modules would lengthen downtimes
            async for number in signals:
                log.info("daemon_stopping", signal=signal.Signals(number).name)
                break
            nursery.cancel_scope.cancel()


def _leaves(group: BaseExceptionGroup[OptmigError]) -> list[OptmigError]:
    leaves: list[OptmigError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


if __name__ == "__main__":
    main()
