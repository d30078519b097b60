"""`optkit completion`: the script that makes a shell complete optkit's commands and options."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    r"""Print a shell completion script.

    \b
    bash:  eval "$(optkit completion bash)" in ~/.bashrc
    zsh:   eval "$(optkit completion zsh)" in ~/.zshrc
    fish:  optkit completion fish > ~/.config/fish/completions/optkit.fish
    """
    from click.shell_completion import get_completion_class

    from optkit.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click brings these three
    click.echo(kind(cli, {}, "optkit", "_OPTKIT_COMPLETE").source())
