"""The command line: `dpcgan COMMAND`. Commands are in the modules beside this one; nothing here has logic."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import dpcgan_fast
from dpcgan_fast.cli import console
from dpcgan_fast.cli.accounting import account
from dpcgan_fast.cli.auditing import audit
from dpcgan_fast.cli.benchmarks import bench
from dpcgan_fast.cli.doctor import doctor
from dpcgan_fast.cli.training import prepare, schema, train
from dpcgan_fast.cli.tuning import tune
from dpcgan_fast.cli.using import demo, evaluate, sample

app = typer.Typer(
    help="Differentially private synthetic health records. Start with `dpcgan demo`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (demo, schema, prepare, train, tune, sample, evaluate, account, audit, bench, doctor):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.result(dpcgan_fast.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    return console.run(lambda args: app(args, standalone_mode=False), arguments)


def main() -> None:
    """The `dpcgan` command, once all is imported.

    Ends the process at once: a thread of Arrow's reader that is still there would abort an orderly end.
    """
    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
