"""What all commands share: options, output in two forms, and errors that become exit codes.

Every command accepts `--json` and `--socket` before or after its name. With `--json`, standard
output carries JSON alone, errors included: a program needs to read no other stream.
"""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from optmigd.blocking import BlockingClient
from optmigd.cli.remedies import blocker_lines, remedy
from optmigd.exitcodes import ExitCode, exit_code
from optmigd.protocol.errors import OptmigError
from optmigd.units import parse_rate, parse_size


@dataclasses.dataclass
class Invocation:
    """How this command was called; `socket` is None for the default."""

    socket: Path | None = None
    json: bool = False

    def client(self) -> BlockingClient:
        """Return a client of the daemon that was named."""
        return BlockingClient(self.socket)

    def emit(self, answer: object) -> None:
        """Print an object as JSON: indented for a person at a terminal, else on one line."""
        click.echo(to_json(answer, indent=2 if sys.stdout.isatty() else None))


class Reported(Exception):
    """A command has printed its outcome and ends with `code`."""

    def __init__(self, code: int) -> None:
        """End with this exit code."""
        super().__init__(code)
        self.code = code


def to_json(answer: object, *, indent: int | None = None) -> str:
    """Write an answer as JSON; bytes become hexadecimal."""

    def other(value: object) -> object:
        match value:
            case bytes():
                return value.hex()
            case Path():
                return str(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    return json.dumps(answer, default=other, indent=indent, ensure_ascii=False)


class ControlCommand(click.Command):
    """A command that has `--json` and `--socket` besides its own options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["--socket"],
                type=click.Path(path_type=Path),
                expose_value=False,
                callback=_remember("socket"),
                help="Control socket of the daemon (default: $OPTMIGD_SOCKET, else this user's).",
            ),
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_remember("json"),
                help="Print JSON.",
            ),
        ]


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        invocation = context.ensure_object(Invocation)
        if value:
            setattr(invocation, name, value)

    return callback


class ControlGroup(ControlCommand, click.Group):
    """A group whose commands all have the shared options."""

    command_class = ControlCommand


def _option_type(parse: Callable[[str], int]) -> Callable[[str], int]:
    """Make a click type of a parser that raises ValueError, keeping what the parser says."""

    def convert(text: str) -> int:
        try:
            return parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return convert


SIZE = _option_type(parse_size)
RATE = _option_type(parse_rate)


def run(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; nothing is raised.

    Args:
        command: the outermost command.
        program: its name in messages.
        arguments: without the program's name; None for those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in ours
    try:
        outcome = command.main(list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else ExitCode.OK
    except Reported as reported:
        return reported.code
    except click.Abort:
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        if as_json:
            click.echo(to_json(_error_object("usage", error.format_message(), {})))
        else:
            error.show()
        return ExitCode.USAGE
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from reporting it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.ERROR
    except OptmigError as error:
        report(error, program, as_json=as_json)
        return exit_code(error)
    except Exception as error:
        traceback.print_exc()
        internal = OptmigError(f"this is a bug in {program}: {error!r}; please report it")
        report(internal, program, as_json=as_json)
        return ExitCode.ERROR


def report(error: OptmigError, program: str, *, as_json: bool) -> None:
    """Print an error: for a program on standard output, for a person on standard error."""
    if as_json:
        click.echo(to_json(error_answer(error)))
        return
    click.echo(f"{program}: {error.message}", err=True)
    for line in blocker_lines(error.fields.get("blockers")):
        click.echo(f"  {line}", err=True)
    advice = remedy(error.code)
    if advice:
        click.echo(f"{program}: what to do: {advice}", err=True)


def error_answer(error: OptmigError) -> dict[str, Any]:
    """The object that `--json` prints for an error.

    That of a migration has all that is known of the migration beside `error`.
    """
    fields = dict(error.fields)
    migration = fields.pop("migration", None)
    answer = dict(migration) if isinstance(migration, dict) else {}
    return {**answer, **_error_object(error.code, error.message, fields)}


def _error_object(code: str, message: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "fields": fields}}
