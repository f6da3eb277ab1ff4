"""A sample while it is being written: what of its tokens counts, what of its text may be shown, and why it ends."""

from collections.abc import Sequence

from hcxjax.inference.requests import Request
from hcxjax.inference.text_stream import TextStream
from hcxjax.text.vocabulary import Vocabulary


class Writing:
    """Follows one sample's tokens.

    Args:
      request: what was asked for.
      room: tokens that it may have.
      vocabulary: None gives no text.
    Attributes:
      by_text: did a stop string end it?
    """

    def __init__(self, request: Request, room: int, vocabulary: Vocabulary | None):
        self._stop_ids = frozenset(request.stop_ids)
        self._left = room
        self.by_text = False
        self._stream = None if vocabulary is None else TextStream(vocabulary, request.stop)

    def take(self, tokens: Sequence[int]) -> tuple[int, str, str | None]:
        """(how many of the next tokens count, the text that they complete, why the sample ends here or None)."""
        text: list[str] = []
        for used, token in enumerate(tokens, 1):
            self._left -= 1
            finish = "stop" if token in self._stop_ids else None
            if self._stream is not None and finish is None:
                text.append(self._stream.push(token))
                self.by_text = self._stream.stopped
                finish = "stop" if self.by_text else None
            if finish is None and not self._left:
                finish = "length"
            if finish is not None:
                text.append(self.rest())
                if self._stream is not None and self._stream.stopped:
                    finish = "stop"  # a stop string was complete, and an earlier one might still have come
                return used, "".join(text), finish
        return len(tokens), "".join(text), None

    def rest(self) -> str:
        """Text that was held back, at the end."""
        return "" if self._stream is None else self._stream.flush()
