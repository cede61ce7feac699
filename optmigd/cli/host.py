"""`optmigctl host`: who this host is, and which hosts it trusts to be who they say."""

import click

from optmigd.cli.invocation import ControlGroup, Invocation
from optmigd.cli.tables import print_pairs, print_table
from optmigd.config import Peer, parse_address
from optmigd.protocol.errors import ConfigError


@click.group(cls=ControlGroup)
def host() -> None:
    """This host's identity and its peers."""


@host.command()
@click.pass_obj
def identity(invocation: Invocation) -> None:
    """Print what the operators of peers need to know of this host."""
    answer = invocation.client().host_identity()
    if invocation.json:
        invocation.emit(answer)
        return
    name, listen, key = answer["name"], answer["listen"], answer["key"]
    print_pairs({"name": name, "listen": listen, "key": key, "fingerprint": answer["fingerprint"]})
    address, port = parse_address(listen)
    if address in ("0.0.0.0", "::"):
        click.echo("\nOn each peer, with an address of this host that it can reach:")
        click.echo(f"optmigctl host add {name} ADDR:{port} {key}")
    else:
        click.echo(f"\nOn each peer:\noptmigctl host add {name} {listen} {key}")


@host.command()
@click.pass_obj
def peers(invocation: Invocation) -> None:
    """List the hosts that this one talks to."""
    answer = invocation.client().host_peers()
    if invocation.json:
        invocation.emit({"peers": answer})
        return
    print_table(
        ("name", "address", "key", "fingerprint"),
        [(each["name"], each["address"], each["key"], each["fingerprint"]) for each in answer],
    )


@host.command()
@click.argument("name")
@click.argument("address", metavar="ADDR:PORT")
@click.argument("key")
@click.pass_obj
def add(invocation: Invocation, name: str, address: str, key: str) -> None:
    """Pin a peer, or replace the one called NAME; takes effect at once and is kept.

    `optmigctl host identity` on that host prints ADDR:PORT and KEY.
    """
    try:
        peer = Peer.parse(name, address, key)
    except ConfigError as error:
        raise click.UsageError(error.message) from error
    client = invocation.client()
    before = next((each for each in client.host_peers() if each["name"] == name), None)
    client.host_add(name, address, key)
    if invocation.json:
        invocation.emit(
            {
                "name": peer.name,
                "address": peer.address,
                "key": peer.key_text,
                "fingerprint": peer.fingerprint,
            }
        )
        return
    click.echo(f"peer {name} at {peer.address}, key {peer.fingerprint}")
    if before is not None and before["key"] != peer.key_text:
        click.echo(f"it replaces the key {before['fingerprint']}", err=True)


@host.command()
@click.argument("name")
@click.pass_obj
def remove(invocation: Invocation, name: str) -> None:
    """Forget a peer; takes effect at once and is kept."""
    invocation.client().host_remove(name)
    if invocation.json:
        invocation.emit({"name": name})
    else:
        click.echo(f"peer {name} is forgotten")
