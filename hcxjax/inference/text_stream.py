"""Text of tokens as they come, cut where a stop string begins."""

from collections.abc import Sequence

from hcxjax.text.vocabulary import StreamDecoder, Vocabulary


class _Search:
    """Finds the first occurrence of one string, a character at a time (Knuth, Morris and Pratt 1977)."""

    def __init__(self, string: str):
        self.string = string
        self.matched = 0
        """Characters of `string` that the text seen so far ends with."""
        self._shorter = [0]
        for character in string[1:]:
            self._shorter.append(self._next(self._shorter[-1], character))

    def _next(self, matched: int, character: str) -> int:
        while matched and self.string[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + (self.string[matched] == character)

    def push(self, character: str) -> bool:
        """Whether `string` is complete."""
        self.matched = self._next(self.matched, character)
        return self.matched == len(self.string)


class TextStream:
    """What of a growing text may be shown: whole characters, nothing of a stop string and nothing after it.

    Text that may be the beginning of a stop string waits until it is known not to be. Of several stop strings the one
    that begins first counts, even if another is complete before it. A token costs as much as it has characters, times
    the number of stop strings, however long the text is.

    Args:
      vocabulary: of the tokens.
      stop: strings that the text ends before.
    Raises:
      ValueError: a stop string is empty or no valid Unicode.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()):
        if "" in stop:
            raise ValueError("stop has an empty string, which every text contains; leave it out")
        self._decoder = StreamDecoder(vocabulary)
        # The form in which the model writes it: a vocabulary may know only one form of each character.
        self._searches = [_Search(vocabulary.decode(vocabulary.encode(string))) for string in dict.fromkeys(stop)]
        self._held = ""
        self._shown = 0  # characters before the held ones
        self._seen = 0  # characters that were looked at
        self._cut: int | None = None  # where the first stop string that is complete begins
        self.stopped = False
        """A stop string has appeared, and none that begins before it can appear any more."""

    def push(self, token: int) -> str:
        """Text that is safe to show, possibly none; always none once `stopped`."""
        if self.stopped:
            return ""
        text = self._decoder.push(token)
        if not self._searches:
            return text
        self._held += text
        for character in text:
            self._seen += 1
            if self._look_at(character):
                return self.flush()
        return self._release(self._earliest())

    def flush(self) -> str:
        """What was held back, at the end of the text; bytes that form no whole character are not shown."""
        self.stopped = self._cut is not None
        shown = self._release(self._shown + len(self._held) if self._cut is None else self._cut)
        self._held, self._searches = "", []
        return shown

    def _look_at(self, character: str) -> bool:
        """Whether it is now decided where the text ends."""
        for search in self._searches:
            if search.push(character):
                start = self._seen - len(search.string)
                self._cut = start if self._cut is None else min(self._cut, start)
        if self._cut is None:
            return False
        cut = self._cut
        self._searches = [
            search
            for search in self._searches
            if search.matched < len(search.string) and self._seen - search.matched < cut
        ]
        return not self._searches

    def _earliest(self) -> int:
        """Where the earliest stop string begins that is complete or may become so."""
        return min(self._seen - search.matched for search in self._searches)

    def _release(self, until: int) -> str:
        count = until - self._shown
        shown, self._held = self._held[:count], self._held[count:]
        self._shown = until
        return shown
