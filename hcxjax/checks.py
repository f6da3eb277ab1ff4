"""Numbers that cannot be are refused where they are given, with the field to change."""


def whole(owner: object, least: int, *fields: str) -> None:
    """ValueError unless each of the owner's `fields` is a whole number of at least `least`."""
    for name in fields:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            kind = type(owner).__name__
            raise ValueError(f"{kind}.{name} is {value!r}; it must be a whole number of at least {least}")


def number(owner: object, *fields: str) -> None:
    """ValueError unless each of the owner's `fields` is a number."""
    for name in fields:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be a number")
