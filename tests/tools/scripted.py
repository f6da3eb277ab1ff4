"""An engine that writes what it is told to, a token a round: for what tools make of a text, whatever a model says."""

from hcxjax.inference.requests import Delta, Request
from hcxjax.text.vocabulary import Vocabulary


class Scripted:
    """Gives the answers in turn; each ends with a stop id of its own, or by the length that is asked for."""

    def __init__(self, vocabulary: Vocabulary, answers: list[str], context: int = 1000):
        self.vocabulary, self.context = vocabulary, context
        self.requests: list[Request] = []
        self.rounds = 0
        self._answers = [vocabulary.encode(answer, specials=True) for answer in answers]
        self._left: list[int] = []
        self._cancelled = False

    @property
    def idle(self) -> bool:
        return not self._left

    def submit(self, request: Request) -> int:
        self.requests.append(request)
        self._left = self._answers[len(self.requests) - 1][: request.new_tokens]
        return len(self.requests) - 1

    def cancel(self, number: int) -> None:
        self._cancelled = True

    def advance(self) -> list[Delta]:
        self.rounds += 1
        number = len(self.requests) - 1
        if self._cancelled:
            self._cancelled, self._left = False, []
            return [Delta(number, 0, (), (), "", "cancelled")]
        token, *self._left = self._left
        stops = token in self.requests[-1].stop_ids
        self._left = [] if stops else self._left
        finish = None if self._left else "stop" if stops else "length"
        return [Delta(number, 0, (token,), (0.0,), "", finish)]
