"""Arguments and options that several commands have, and how their texts are read."""

from typing import Annotated

import typer

from dpcgan_fast.errors import InputError

DATA = (
    "Table: CSV (also compressed; separator , ; tab), Parquet, a folder of either or in the MEDS standard, or a CSR "
    "matrix of codes (.npz)."
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Device = Annotated[
    str, typer.Option(help="auto, cpu or cuda. auto takes a GPU if there is one and this build has kernels for it.")
]


def epsilons_of(text: str, option: str, such_as: str) -> tuple[float, ...]:
    """Different positive numbers that are parted by commas. Raises InputError for anything else, with an example."""
    try:
        numbers = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not all(number > 0 for number in numbers):
        raise InputError("These are no epsilons", f"{option} {text}", f"Give positive numbers, such as {such_as}.")
    return numbers
