"""``leignn``: train, evaluate, simulate, look at data and potentials. Nothing heavy is imported before it is used.

Exit codes: 0; 1 for an error, and for a simulation or relaxation that came to no good end; 2 for a wrong command line; 130
after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import typer

from leignn_jax.commands import data, dynamics, sweeps, training

app = typer.Typer(
    name="leignn",
    help="Train, evaluate and use interatomic potentials (LEIGNN in JAX).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at data, and get public ones.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

app.command(epilog="Example:  leignn quickstart --out tour")(training.quickstart)
app.command(
    epilog="Examples:  leignn train config.yaml optimizer.learning_rate=1e-3   |   "
    "leignn train --train frames.extxyz --out run data.batch_size=4   |   on every host of a cluster: "
    "leignn train config.yaml run.devices=16 --distributed"
)(training.train)
app.command(epilog="Example:  leignn fit fit.yaml run.epochs=20")(training.fit)
app.command(
    epilog="Example:  leignn evaluate run/potential.safetensors test.extxyz --json errors.json --plot parity.png"
)(training.evaluate)
app.command(
    epilog="Examples:  leignn sweep study.yaml   |   on every host of a cluster: leignn sweep study.yaml --distributed"
)(sweeps.sweep)
app.command(
    epilog="Example:  leignn select study/potentials/*.safetensors --pool md/trajectory.extxyz --count 50 --out label.extxyz"
)(sweeps.select)
app.command(
    epilog="Example:  leignn label potential.safetensors --frames train.extxyz --copies 4 --out labelled.extxyz"
)(sweeps.label)
app.command(
    epilog="Example:  leignn md potential.safetensors start.extxyz --ensemble nvt --temperature 300 --steps 10000 --out md"
)(dynamics.md)
app.command(epilog="Example:  leignn relax potential.safetensors start.cif --cell full --out relaxed")(dynamics.relax)
app.command(epilog="Example:  leignn bench si silicon.cif --atoms 64 --atoms 4096")(dynamics.bench)
app.command(epilog="Example:  leignn info run/potential.safetensors")(data.info)
data_app.command("inspect", epilog="Example:  leignn data inspect train.extxyz --against test.extxyz --plot data.png")(
    data.inspect
)
data_app.command("list", epilog="Example:  leignn data list --json sets.json")(data.list_sets)
data_app.command("get", epilog="Example:  leignn data get rmd17-aspirin --out data")(data.get)


def _finds_a_device() -> bool:
    """False where JAX was asked to compute and can't start."""
    jax = sys.modules.get("jax")
    if jax is None:
        return True
    try:
        return len(jax.devices()) > 0
    except (RuntimeError, AssertionError):
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors made for people are printed without a traceback, exit code 1.

    arguments: of the command line; None takes those of this process.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("absl", "orbax", "jax", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from leignn_jax.errors import LeignnError

    try:
        app(args=arguments, prog_name="leignn")
    except LeignnError as error:
        message = str(error)
    except OSError as error:
        from leignn_jax.files import in_words

        message = in_words(error)
    except (RuntimeError, AssertionError) as error:
        if _finds_a_device():
            raise
        asked = os.environ.get("JAX_PLATFORMS")
        message = (
            f"JAX finds no device of JAX_PLATFORMS={asked}. Unset that variable to use what there is; for a GPU, "
            "pip install 'leignn-jax[cuda12]' or [cuda13]."
            if asked
            else f"JAX finds no device to compute on: {error}. Set JAX_PLATFORMS=cpu to do without a GPU."
        )
    else:
        return
    typer.echo(f"Error: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
