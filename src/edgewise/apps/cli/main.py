"""The command line and its entry point: all commands in the order of `edgewise --help`.

Commands import everything beyond typer inside, so that help is fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise.apps.cli import device_commands as owners
from edgewise.apps.cli import (
    distill_command,
    eval_command,
    guides,
    keeping,
    model_commands,
    recipe_commands,
    reproduce_command,
    retrieve_commands,
    run_commands,
    shrink_command,
    simulation_commands,
    stats_command,
    sweeping,
    use_commands,
)
from edgewise.apps.cli import gateway_commands as gateways
from edgewise.apps.cli import server_commands as operators

app = typer.Typer(
    name="edgewise",
    help="Federate language-model training on data that stays where it is.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from importlib.metadata import version

        print(f"edgewise {version('edgewise')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federate language-model training on data that stays where it is."""


for command in (
    simulation_commands.demo,
    guides.new,
    guides.recipes,
    recipe_commands.check,
    simulation_commands.sim,
    simulation_commands.report,
    stats_command.stats,
    sweeping.sweep,
    guides.compare,
    use_commands.chat,
    use_commands.generate,
    use_commands.export,
    retrieve_commands.index,
    retrieve_commands.ask,
    distill_command.distill,
    shrink_command.shrink,
    recipe_commands.audit,
    recipe_commands.schema,
    guides.explain,
    operators.serve,
    operators.join,
    keeping.doctor,
    keeping.backup,
    keeping.restore,
):
    app.command()(command)
app.command("eval")(eval_command.evaluate)
recipe_commands.bench.command()(reproduce_command.reproduce)
app.add_typer(recipe_commands.bench, name="bench", help="Measure parts of edgewise, and repeat published tables.")
app.add_typer(owners.device, name="device", help="Run and control your own device.")
app.add_typer(run_commands.run, name="run", help="Submit recipes to a server and follow their runs.")
app.add_typer(model_commands.models, name="models", help="Promote released models and fetch the promoted one.")
app.add_typer(operators.token, name="token", help="Create, list and revoke enrolment tokens.")
app.add_typer(operators.fleet, name="fleet", help="List, approve and revoke devices.")
app.add_typer(gateways.gateway, name="gateway", help="Run a gateway, the second server of shared sums.")


def main() -> None:
    """Run the command line (the entry point of the package)."""
    from edgewise.drivers.screen import guard_streams

    guard_streams()
    app(prog_name="edgewise")


if __name__ == "__main__":
    main()
