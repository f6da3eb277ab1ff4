"""A request's JSON object, read field by field: what is absent, what is null, what has another type."""

import json
from typing import Any

from hcxjax.serving.refusals import invalid


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def decoded(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
      Refusal: it is no UTF-8, no JSON, or no object.
    """
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_constant)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the body is not valid JSON in UTF-8: {error}") from None
    if not isinstance(found, dict):
        raise invalid("the body must be a JSON object")
    return found


class Fields:
    """Reads typed values and remembers what was read, so that the rest can be refused. Null is as good as absent."""

    def __init__(self, values: dict[str, Any], within: str = ""):
        self._values = {name: value for name, value in values.items() if value is not None}
        self._within = within
        self._left = set(self._values)

    def name(self, field: str) -> str:
        """The field's path from the top of the request."""
        return f"{self._within}.{field}" if self._within else field

    def raw(self, field: str) -> Any:
        """Any value; None where absent."""
        self._left.discard(field)
        return self._values.get(field)

    def text(self, field: str) -> str | None:
        """A string."""
        value = self.raw(field)
        if value is not None and not isinstance(value, str):
            raise self._wrong(field, value, "a string")
        return value

    def flag(self, field: str) -> bool:
        """True or false; false where absent."""
        value = self.raw(field)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(field, value, "true or false")
        return bool(value)

    def whole(self, field: str, least: int, most: int | None = None) -> int | None:
        """A whole number within limits."""
        value = self.raw(field)
        if value is None:
            return None
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not good or (most is not None and value > most):
            top = f" and at most {most}" if most is not None else ""
            raise self._wrong(field, value, f"a whole number of at least {least}{top}")
        return value

    def number(self, field: str, default: float, least: float, most: float) -> float:
        """A number within limits."""
        value = self.raw(field)
        if value is None:
            return default
        # Compared before anything else: an integer of JSON may be too large to be a float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self._wrong(field, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def wholes(self, field: str, most: int) -> tuple[int, ...]:
        """A list of whole numbers of 0 and more; empty where absent."""
        value = self.raw(field)
        if value is None:
            return ()
        kind = f"a list of at most {most} whole numbers of at least 0"
        if not isinstance(value, list) or len(value) > most or not all(is_id(item) for item in value):
            raise self._wrong(field, value, kind)
        return tuple(value)

    def nested(self, field: str) -> "Fields":
        """An object; empty where absent."""
        value = self.raw(field)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(field, value, "an object")
        return Fields(value or {}, self.name(field))

    def refuse_rest(self) -> None:
        """Refusal that names a field nobody read: ignoring it could change the answer."""
        if self._left:
            field = self.name(min(self._left))
            raise invalid(f"unknown field {shown(field)}", param=field, code="unknown_parameter")

    def _wrong(self, field: str, value: object, kind: str) -> Exception:
        return invalid(f"{self.name(field)} is {shown(value)}; it must be {kind}", param=self.name(field))


def is_id(value: object) -> bool:
    """Whether a value can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def shown(value: object) -> str:
    """A value for a message: short, and without characters that UTF-8 cannot carry, which `repr` escapes."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
