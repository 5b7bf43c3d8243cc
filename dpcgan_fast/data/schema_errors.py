"""What is wrong with a schema, in the words of the schema's own documentation in place of the validator's."""

from collections.abc import Sequence
from typing import Any

_SAID = {
    "missing": "a field is missing",
    "extra_forbidden": "there is no such field",
    "tuple_type": "a list is needed here",
    "too_short": "a list of another length is needed here",
    "too_long": "a list of another length is needed here",
    "string_type": "a text is needed here",
    "string_too_short": "a text here must not be empty",
    "int": "a whole number is needed here",
    "float": "a number is needed here",
    "finite": "a number is needed here",
    "bool": "true or false is needed here",
    "model": "an object is needed here",
}


def schema_message(errors: Sequence[Any]) -> str:
    """One sentence on the first of pydantic's errors. errors: of one validation, without their inputs"""
    first = errors[0]
    kind, place = first["type"], first["loc"]
    of_item = any(isinstance(part, str) and part.startswith("tuple[") for part in place[:-1])
    if kind == "missing" and of_item:  # one of the items of a list
        kind = "too_short"
    said = _SAID.get(kind) or _SAID.get(kind.split("_")[0])
    if said is None:
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "the value must be")
    others = [error["loc"][:3] for error in errors[1:] if error["loc"][-1] == "literal['private']"]
    return f'{said}, or "private"' if place[:3] in others else said
