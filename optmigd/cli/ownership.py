"""`optmigctl owner`, `recover` and `forget`: whose an enclave is, and settling what hangs."""

from typing import Literal

import click

from optmigd.cli.invocation import ControlCommand, Invocation
from optmigd.cli.tables import print_pairs
from optmigd.exitcodes import ExitCode

_STATES = {
    "running": "it runs there",
    "exited": "it has ended there",
    "released": "released to that host, which has not confirmed: it runs there or waits for the "
    "token",
    "incoming": "it is on its way here, and was that host's when it set out",
    "moved": "it moved to that host, which does not say what became of it",
    "lost": "released to that host, and the delivery given up: it runs there or nowhere",
}


@click.command(cls=ControlCommand)
@click.argument("enclave", metavar="ID")
@click.pass_obj
def owner(invocation: Invocation, enclave: str) -> int:
    """Say who may run enclave ID, since when and by which migration; exits with 6 if uncertain."""
    answer = invocation.client().owner(enclave)
    code = ExitCode.OK if answer["certain"] else ExitCode.UNCERTAIN
    if invocation.json:
        invocation.emit(answer)
        return code
    print_pairs(
        {
            "enclave": answer["enclave"],
            "owner": answer["owner"],
            "owner key": answer["owner_key"],
            "state": f"{answer['state']} ({_STATES.get(answer['state'], '?')})",
            "owner generation": str(answer["owner_generation"]),
            "since": answer["since"] or "not known",
            "migration": answer["migration_id"] or "none: it was launched there",
            "certain": "yes" if answer["certain"] else "NO",
            "according to": answer["according_to"],
            "asked": ", ".join(answer["asked"]) or "nobody else",
            **({"unreachable": ", ".join(answer["unreachable"])} if answer["unreachable"] else {}),
        }
    )
    return code


@click.command(cls=ControlCommand)
@click.argument("id", metavar="ID")
@click.option(
    "--give-up", "decision", flag_value="give-up", help="At the source: end the delivery."
)
@click.option(
    "--discard", "decision", flag_value="discard", help="At the destination: destroy what waits."
)
@click.option("--yes", is_flag=True, help="Confirm; a decision cannot be taken back.")
@click.pass_obj
def recover(
    invocation: Invocation, id: str, decision: Literal["give-up", "discard"] | None, yes: bool
) -> None:
    """Show migration ID, or the last one of enclave ID, and what may be done about it.

    For a migration whose other host is gone. --give-up and --discard settle it; each may lose the
    enclave, neither can make a second owner.
    """
    if yes and decision is None:
        raise click.UsageError("--yes confirms --give-up or --discard: say which")
    answer = invocation.client().recover(id, decision=decision, confirmed=yes)
    if invocation.json:
        invocation.emit(answer)
        return
    print_pairs(
        {
            "migration": answer["migration_id"],
            "enclave": answer["enclave"],
            "role": f"{answer['role']}, with host {answer['peer']}",
            "here": answer["here"],
            "there": answer["there"] or "no answer",
            "meaning": answer["meaning"],
        }
    )
    for choice in answer["choices"]:
        command = f" (`{choice['command']}`)" if choice["command"] else ""
        click.echo(f"choice: {choice['choice']}{command}: {choice['meaning']}")


@click.command(cls=ControlCommand)
@click.argument("enclave", metavar="ID")
@click.pass_obj
def forget(invocation: Invocation, enclave: str) -> None:
    """Remove the record and the files of enclave ID, which has ended here or moved away."""
    answer = invocation.client().forget(enclave)
    if invocation.json:
        invocation.emit(answer)
        return
    click.echo(f"enclave {enclave} ({answer['state']}) is forgotten")
    if answer["lost_way"] is not None:
        click.echo(
            f"it went to host {answer['lost_way']}; this host can no longer say so to anybody",
            err=True,
        )
