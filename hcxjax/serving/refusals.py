"""Why a request is not served, in the form in which OpenAI's API says so."""

from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
RETRY_SECONDS = 1
"""What a client is told to wait where waiting helps."""


class Refusal(Exception):  # noqa: N818 (an answer, not a mistake of ours)
    """Ends a request with a status and an error object.

    Args:
      status: of the HTTP response.
      message: for a person; never holds a secret.
      param: the field of the request that is to be changed.
      code: for a program.
      close: the connection ends with this answer, because the rest of the request is not read.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, close: bool = False
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.close = status, message, param, code, close

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response, or of an event in a stream that has begun."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the body."""
        headers = {"retry-after": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers | ({"connection": "close"} if self.close else {})


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """400: the request has to be changed."""
    return Refusal(400, message, param=param, code=code)


def unsupported(param: str, why: str) -> Refusal:
    """400: OpenAI's API has this, and ignoring it would change the answer."""
    return Refusal(400, f"{param} is not supported: {why}", param=param, code="unsupported_parameter")
