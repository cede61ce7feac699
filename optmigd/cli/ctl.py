"""`optmigctl`: what an operator asks of the daemon on this machine."""

import codecs
import sys
from pathlib import Path
from typing import Any

import click

import optmigd
from optmigd.cli.bench import bench
from optmigd.cli.host import host
from optmigd.cli.invocation import SIZE, ControlGroup, Invocation, run, to_json
from optmigd.cli.migrate import migrate, set_, watch
from optmigd.cli.ownership import forget, owner, recover
from optmigd.cli.remedies import blocker_lines
from optmigd.cli.tables import (
    platform_text,
    print_forecast,
    print_holdings,
    print_pairs,
    print_table,
    state_text,
    status_pairs,
)
from optmigd.conversation import DaemonUnreachable
from optmigd.exitcodes import ExitCode
from optmigd.requests import Tracker
from optmigd.units import format_size


@click.group(cls=ControlGroup)
def ctl() -> None:
    """Start, watch and move the enclaves of this host."""


def main() -> None:
    """Run `optmigctl`."""
    sys.exit(run(ctl, "optmigctl"))


@ctl.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "enclave", default="", metavar="ID", help="Its name (default: made up).")
@click.option("--memory", type=SIZE, default="0", metavar="SIZE", help="Such as 4GiB.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="The enclave's own directory, which travels with it.",
)
@click.option(
    "--shared",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Storage that both hosts see at this path.",
)
@click.option(
    "--policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The owner's policy: to whom it may move.",
)
@click.option("--env", multiple=True, metavar="K=V", help="Environment of the program.")
@click.option(
    "--stdin",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File for its standard input.",
)
@click.option(
    "--tracker",
    type=click.Choice(["auto", "kernel", "compiler"]),
    default="auto",
    show_default=True,
    help="How its written pages are found; auto: by the kernel where it can.",
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def launch(
    invocation: Invocation,
    image: Path,
    enclave: str,
    memory: int,
    directory: Path | None,
    shared: tuple[Path, ...],
    policy: Path | None,
    env: tuple[str, ...],
    stdin: Path | None,
    tracker: Tracker,
    args: tuple[str, ...],
) -> None:
    """Start IMAGE as a new enclave; ARGS after `--` go to the program."""
    for pair in env:
        if "=" not in pair or pair.startswith("="):
            raise click.BadParameter(f"expected K=V; found {pair!r}", param_hint="--env")
    launched = invocation.client().launch(
        image,
        enclave=enclave,
        memory_bytes=memory,
        dir=directory,
        shared=shared,
        policy=b"" if policy is None else policy.read_bytes(),
        env=dict(pair.split("=", 1) for pair in env),
        args=args,
        stdin=stdin,
        tracker=tracker,
    )
    if invocation.json:
        invocation.emit(launched)
    else:
        print_pairs(
            {
                "enclave": launched["enclave"],
                "measurement": launched["measurement"],
                "platform": platform_text(launched["platform"]),
                "tracker": launched["tracker"],
            }
        )


@ctl.command("list")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the enclaves that this host has or has had."""
    answer = invocation.client().call("list")
    if invocation.json:
        invocation.emit(answer)
        return
    print_table(
        ("enclave", "state", "host", "used", "memory", "platform"),
        [
            (
                status["enclave"],
                state_text(status),
                status["host"],
                format_size(status["resident_bytes"] or 0),
                format_size(status["memory_bytes"] or 0),
                status["platform"],
            )
            for status in answer["enclaves"]
        ],
    )


@ctl.command()
@click.argument("enclave", metavar="ID")
@click.pass_obj
def status(invocation: Invocation, enclave: str) -> None:
    """Show enclave ID, wherever it is."""
    answer = invocation.client().call("status", {"enclave": enclave})
    if invocation.json:
        invocation.emit(answer)
        return
    print_pairs(status_pairs(answer))
    for line in blocker_lines(answer.get("blockers")):
        click.echo(f"cannot move now: {line}")


@ctl.command()
@click.argument("enclave", metavar="ID")
@click.option("--follow", is_flag=True, help="Go on until the program has ended.")
@click.pass_obj
def logs(invocation: Invocation, enclave: str, follow: bool) -> None:
    """Print the program's output, whole and in order, wherever it was written.

    With --json: {enclave, content}; with --follow too, one such object for each piece.
    """
    pieces = invocation.client().logs(enclave, follow=follow)
    if not invocation.json:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    # A character may lie across two pieces.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    if not follow:
        content = "".join(map(decoder.decode, pieces)) + decoder.decode(b"", final=True)
        invocation.emit({"enclave": enclave, "content": content})
        return
    for piece in pieces:
        click.echo(to_json({"enclave": enclave, "content": decoder.decode(piece)}))
    rest = decoder.decode(b"", final=True)
    if rest:
        click.echo(to_json({"enclave": enclave, "content": rest}))


@ctl.command()
@click.argument("enclave", metavar="ID")
@click.pass_obj
def wait(invocation: Invocation, enclave: str) -> int:
    """Wait until the program has ended, on whichever host, and exit with its status."""
    answer = invocation.client().wait(enclave)
    _show_exit(invocation, enclave, answer)
    return shell_status(answer["exit_status"])


@ctl.command()
@click.argument("enclave", metavar="ID")
@click.pass_obj
def stop(invocation: Invocation, enclave: str) -> None:
    """End the program of enclave ID, wherever it is."""
    _show_exit(invocation, enclave, invocation.client().stop(enclave))


def _show_exit(invocation: Invocation, enclave: str, answer: Any) -> None:
    if invocation.json:
        invocation.emit(answer)
        return
    where = f" on {answer['host']}" if answer.get("host") else ""
    how = "in an unknown way"
    if answer["exit_status"] is not None:
        how = f"with status {answer['exit_status']}"
    click.echo(f"{enclave} has ended {how}{where}")


def shell_status(exit_status: int) -> int:
    """An exit status as a shell shows it: a program ended by signal N, status -N, exits 128 + N."""
    return 128 - exit_status if exit_status < 0 else exit_status


@ctl.command()
@click.argument("enclave", metavar="ID")
@click.argument("host", metavar="HOST")
@click.pass_obj
def check(invocation: Invocation, enclave: str, host: str) -> int:
    """Say whether ID could move to HOST now: every blocker at once, or a forecast."""
    answer = invocation.client().check(enclave, host)
    blockers = answer["blockers"]
    if invocation.json:
        invocation.emit(answer)
    elif blockers:
        click.echo(f"{enclave} cannot move to {host}:")
        for line in blocker_lines(blockers):
            click.echo(f"  {line}")
    else:
        click.echo(f"{enclave} can move to {host}")
        print_forecast(answer.get("forecast") or {})
    if not invocation.json:
        print_holdings(answer.get("holds") or {})
        for refused in answer.get("refused_calls") or []:
            click.echo(
                f"note: {refused['call']}() at {refused['place']} was answered with ENOSYS; "
                "no obstacle if the program can do without"
            )
    return ExitCode.REFUSED if blockers else ExitCode.OK


@ctl.command()
@click.argument("enclave", metavar="ID")
@click.pass_obj
def cancel(invocation: Invocation, enclave: str) -> None:
    """Ask for the end of the migration of ID; it runs on where it was."""
    answer = invocation.client().cancel(enclave)
    if invocation.json:
        invocation.emit(answer)
    else:
        click.echo(f"migration {answer['migration_id']} of {enclave}: {answer['state']}")


@ctl.command()
@click.argument("id", metavar="ID")
@click.pass_obj
def receipt(invocation: Invocation, id: str) -> None:
    """Print the signed receipt of migration ID, or of the last one of enclave ID."""
    answer = invocation.client().receipt(id)
    if invocation.json:
        invocation.emit(answer)
        return
    print_pairs(
        {
            key: platform_text(value)
            if key == "platform"
            else (value if isinstance(value, str) else to_json(value))
            for key, value in answer.items()
        }
    )


@ctl.command()
@click.pass_obj
def version(invocation: Invocation) -> None:
    """Print the versions of this command and of the daemon, if one runs."""
    try:
        daemon = invocation.client().ping()
    except DaemonUnreachable:
        daemon = None
    if invocation.json:
        invocation.emit({"version": optmigd.__version__, "daemon": daemon})
    elif daemon is None:
        click.echo(f"optmigctl {optmigd.__version__}; no daemon answers")
    else:
        click.echo(
            f"optmigctl {optmigd.__version__}; daemon {daemon['name']} {daemon['version']}, "
            f"platform {platform_text(daemon['platform'])}"
        )


ctl.add_command(migrate)
ctl.add_command(set_)
ctl.add_command(watch)
ctl.add_command(host)
ctl.add_command(bench)
for each in (owner, recover, forget):
    ctl.add_command(each)


if __name__ == "__main__":
    main()
