"""The command line: one click command per file, imported when invoked, so that `optkit --help` loads only click."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import click

_COMMANDS = {
    "convert": "Make every artifact of a recipe, and prove each one.",
    "plan": "Draw what a recipe would do; runs nothing.",
    "lock": "Write down the versions a recipe is made with, for --frozen.",
    "init": "Look at a model and write a recipe for it.",
    "check": "Compare two artifacts on data.",
    "bench": "Measure how fast artifacts are beside one another.",
    "report": "Draw a run's report again, as HTML, Markdown or JUnit XML.",
    "baseline": "Keep what a run reached, and hold later runs to it.",
    "diff": "Say what differs between two runs or two artifacts.",
    "verify": "Prove delivered folders again, on this machine.",
    "lint": "Say what a runtime refuses of a model, before any long build.",
    "inspect": "Say what is in a model file.",
    "passes": "List the passes, or explain one.",
    "explain": "Say what an error's code means, and what to do.",
    "schema": "Print the JSON Schema of a recipe or a report.",
    "doctor": "Say what is installed here, and what is broken.",
    "env": "Make environments for backends that cannot share this one.",
    "cache": "Say what the cache holds, or trim it.",
    "replay": "Run one recorded step again.",
    "completion": "Print a shell completion script.",
}
"""Every command and its one line of help: the files are opened only when a command is invoked."""


CLOSED_EXIT_CODE = 141  # 128 + SIGPIPE: what a shell reports of a program whose reader went away

C = TypeVar("C", bound=click.Command)


def keep_lines(command: C) -> C:
    r"""The command, its help's lines that hold \b alone made into the character by which click keeps a paragraph."""
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    return command


class Commands(click.Group):
    """A group whose commands live in `optkit.cli.NAME` as `command`; its `main` never shows a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order in which one meets them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"optkit.cli.{cmd_name}").command
        return keep_lines(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest name where there is none of that name."""
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            from optkit.errors import UserError, did_you_mean

            raise UserError(f"there is no command {args[0]!r}", hint=did_you_mean(args[0], _COMMANDS), code="OPK-201")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from the short texts alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; a reader that stops reading gives the exit code of SIGPIPE, where click's 1 is a failed check."""
        try:
            made = super().invoke(ctx)
            if sys.stdout is not None:  # closed by who started optkit
                sys.stdout.flush()
            return made
        except BrokenPipeError:
            from optkit.cli.text import silence

            silence(sys.stdout)
            raise click.exceptions.Exit(CLOSED_EXIT_CODE) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and exit with its code; every error is drawn here."""
        try:
            code = super().main(args, prog_name or "optkit", complete_var, standalone_mode=False, **extra)
        except SystemExit:
            raise
        except BaseException as error:
            from optkit.cli.failure import show

            sys.exit(show(error, list(sys.argv[1:] if args is None else args)))
        sys.exit(code if isinstance(code, int) else 0)


interrupted = 0.0
"""When a signal asked this process to end, else 0: an import it broke into may raise any error in its stead."""

ONE_PRESS_SECONDS = 1.0
"""Further signals within this time are the same request: they would only break into what ends the process in order."""


def _interrupt(number: int, frame: object) -> None:
    global interrupted
    now = time.monotonic()
    if interrupted and now - interrupted < ONE_PRESS_SECONDS:
        return
    interrupted = now
    raise KeyboardInterrupt


def _end_in_order() -> None:
    """Take SIGTERM and SIGHUP as Ctrl-C: workers are stopped, the terminal is restored, the report is written."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _interrupt)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import optkit

        click.echo(f"optkit {optkit.__version__}")
        ctx.exit()


@click.group(
    name="optkit", cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def cli() -> None:
    r"""Convert, optimise and quantise trained models, and prove every step against the source model.

    \b
    Start:       optkit init MODEL
                 optkit plan recipe.yaml
                 optkit convert recipe.yaml
    Exit codes:  0 all held, 1 a check did not hold, 2 wrong recipe or command,
                 3 a step failed, 4 not installed or not available here,
                 70 a bug in optkit, 130 interrupted
    """


keep_lines(cli)


def main() -> NoReturn:
    """The console script `optkit`."""
    _end_in_order()
    cli.main()
