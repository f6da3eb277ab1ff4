"""`@shaped`: array arguments are checked against the capitals that end their names."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SUFFIX = re.compile(r"_([A-Z]+)$")


def suffix(name: str) -> str | None:
    """The shape letters that end `name`: 'q_BTNH' gives 'BTNH', 'scale' gives None."""
    match = _SUFFIX.search(name)
    return match.group(1) if match else None


def shaped(function: Callable[P, R]) -> Callable[P, R]:
    """Checks, at trace time, that arguments have the ranks their names say and agree on every letter.

    Raises:
      ValueError: names the function, the argument, its shape and the letter that disagrees.
    """
    signature = inspect.signature(function)
    lettered = {name: letters for name in signature.parameters if (letters := suffix(name))}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = signature.bind(*args, **kwargs).arguments
        sizes: dict[str, tuple[int, str]] = {}
        for name, letters in lettered.items():
            value = arguments.get(name)
            if value is None:
                continue
            shape = tuple(value.shape)
            if len(shape) != len(letters):
                raise ValueError(
                    f"{function.__qualname__}: {name} has shape {shape}, its name says {len(letters)} dimensions"
                )
            for letter, size in zip(letters, shape, strict=True):
                known, first = sizes.setdefault(letter, (size, name))
                if known != size:
                    raise ValueError(
                        f"{function.__qualname__}: {letter} is {size} in {name} of shape {shape}, but {known} "
                        f"in {first}"
                    )
        return function(*args, **kwargs)

    return checked
