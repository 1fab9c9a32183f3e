"""Which commands are there? This file only puts the nouns together and turns a Problem into a message and an exit code."""
import sys

import typer

from fabtap import __version__, cli_board, cli_books, cli_broker, cli_collector, cli_doctor, cli_sim
from fabtap.problem import Problem
from fabtap.screen import ERR

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
                  help="FabTap: access, metering and fair bills for a community Fab Lab.")
app.add_typer(cli_collector.app, name="collector")
app.add_typer(cli_broker.app, name="broker")
app.add_typer(cli_books.event, name="event")
app.add_typer(cli_books.session, name="session")
app.add_typer(cli_books.charge, name="charge")
app.add_typer(cli_board.app, name="board")
app.add_typer(cli_sim.app, name="sim")
app.command("doctor")(cli_doctor.doctor)


@app.command()
def demo(
    folder: str = typer.Option("build/demo", help="Where the demo's lab lives; it is made anew."),
    stay: bool = typer.Option(False, "--stay", help="Keep the lab running afterwards, for visitors, until Ctrl-C."),
) -> None:
    """A day in a lab of five simulated machines, from tap to bill."""
    from pathlib import Path

    from fabtap.demo import run_demo
    raise typer.Exit(run_demo(Path(folder), stay))


@app.command()
def version() -> None:
    """Print FabTap's version."""
    print(__version__)


def main() -> None:
    """The entry point `fabtap`. Exit codes: 0 ok, 2 a mistake that the message tells how to mend, 3..8 as a board command says."""
    try:
        app()
    except Problem as problem:
        ERR.print(str(problem), markup=False, highlight=False, soft_wrap=True)
        sys.exit(getattr(problem, "exit_code", 2))


if __name__ == "__main__":
    main()
