"""`optmigctl migrate` and `watch`: the commands that follow a migration while it runs."""

import click

from optmigd import requests
from optmigd.cli.invocation import RATE, ControlCommand, Invocation, to_json
from optmigd.cli.progress import event_line, make_display
from optmigd.cli.tables import print_migration, settings_text
from optmigd.exitcodes import ExitCode
from optmigd.protocol.errors import OptmigError


@click.command(cls=ControlCommand)
@click.argument("enclave", metavar="ID")
@click.argument("host", metavar="HOST")
@click.option(
    "--mode",
    type=click.Choice(["precopy", "stop-and-copy"]),
    default="precopy",
    show_default=True,
    help="stop-and-copy is the baseline: the enclave stands still for the whole copy.",
)
@click.option(
    "--downtime-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Switch over when the expected downtime is at most so many milliseconds.",
)
@click.option("--max-bandwidth", type=RATE, default="0", metavar="RATE", help="Such as 200MB/s.")
@click.option("--streams", type=click.IntRange(1, 64), metavar="N", help="TCP connections.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Give up after so many seconds; 0 for no limit.",
)
@click.option(
    "--on-stall",
    type=click.Choice(["throttle", "switch", "abort"]),
    help="What to do when rounds stop shrinking.",
)
@click.option("--verify", is_flag=True, help="Compare both whole arenas while parked; slow.")
@click.option("--detach", is_flag=True, help="Return as soon as the migration has started.")
@click.pass_obj
def migrate(
    invocation: Invocation,
    enclave: str,
    host: str,
    mode: requests.Mode,
    downtime_limit: float | None,
    max_bandwidth: int,
    streams: int | None,
    timeout: float | None,
    on_stall: requests.OnStall | None,
    verify: bool,
    detach: bool,
) -> int:
    """Move the running enclave ID to HOST.

    Ctrl-C cancels the migration; a second one leaves it to itself.
    """
    params = requests.migrate(
        enclave,
        host,
        mode=mode,
        downtime_limit_ms=downtime_limit,
        max_bandwidth=max_bandwidth,
        streams=streams,
        timeout_s=timeout,
        on_stall=on_stall,
        verify=verify,
        detach=detach,
    )
    with make_display(enclave, host, as_json=invocation.json) as display:
        # Loaded here: the other commands should not wait for trio.
        from optmigd.cli.follow import follow

        outcome = follow(invocation.socket, params, display)
    match outcome:
        case None:
            raise _Interrupted(
                f"no longer following the migration of {enclave}, which goes on; see "
                f"`optmigctl status {enclave}`"
            )
        case OptmigError():
            raise outcome
    if invocation.json:
        invocation.emit(outcome)
    elif detach:
        click.echo(f"migration {outcome['migration_id']} of {enclave} to {host} has started")
    else:
        click.echo(f"{enclave} runs on {host}")
        print_migration(outcome)
    return ExitCode.OK


class _Interrupted(OptmigError):
    """The person has left a migration to itself."""

    code = "interrupted"


@click.command("set", cls=ControlCommand)
@click.argument("id", metavar="ID")
@click.option(
    "--downtime-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Switch over when the expected downtime is at most so many milliseconds.",
)
@click.option("--max-bandwidth", type=RATE, metavar="RATE", help="Such as 200MB/s; 0: no limit.")
@click.option(
    "--on-stall",
    type=click.Choice(["throttle", "switch", "abort"]),
    help="What to do when rounds stop shrinking.",
)
@click.pass_obj
def set_(
    invocation: Invocation,
    id: str,
    downtime_limit: float | None,
    max_bandwidth: int | None,
    on_stall: requests.OnStall | None,
) -> None:
    """Change a migration while it is under way or queued; ID is its own or its enclave's.

    What is not given stays as it is.
    """
    if downtime_limit is None and max_bandwidth is None and on_stall is None:
        raise click.UsageError("give --downtime-limit, --max-bandwidth or --on-stall")
    answer = invocation.client().change(
        id, downtime_limit_ms=downtime_limit, max_bandwidth=max_bandwidth, on_stall=on_stall
    )
    if invocation.json:
        invocation.emit(answer)
    else:
        click.echo(f"migration {answer['migration_id']}: {settings_text(answer)}")


@click.command(cls=ControlCommand)
@click.argument("enclave", metavar="[ID]", default="")
@click.pass_obj
def watch(invocation: Invocation, enclave: str) -> None:
    """Print what migrations do, as it happens: of enclave ID, or of all.

    With --json, one object a line. Ends with Ctrl-C.
    """
    for event in invocation.client().watch(enclave):
        if invocation.json:
            click.echo(to_json(event))
            continue
        line = event_line(event)
        if line:
            peer = f" ({event['role']}, peer {event['peer']})" if event.get("peer") else ""
            click.echo(f"{event.get('enclave', '')}{peer}: {line}")
