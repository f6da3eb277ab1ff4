"""From a checked call to requests of the engine: text to ids, stops, seeds, and whether there is room to answer."""

import dataclasses
import secrets
from collections.abc import Sequence

from hcxjax.inference.requests import Request
from hcxjax.inference.sampling import MOST_SEEDS
from hcxjax.serving.calls import CallLimits, Chat, Completion, Options
from hcxjax.serving.fields import shown
from hcxjax.serving.refusals import Refusal, invalid, unsupported
from hcxjax.text.infilling import Sentinels, infilling_prompt
from hcxjax.text.templates import Template
from hcxjax.text.vocabulary import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Vocabulary


@dataclasses.dataclass(frozen=True)
class Served:
    """What is served, and within which limits.

    Attributes:
      name: of the model, as requests name it.
      vocabulary: for prompts; one thread at a time encodes with it.
      template: of conversations; None where the model has none.
      context: tokens of prompt and answer together.
      ids: token ids are below this.
      limits: of one request.
      begin: ids that stand before a prompt of text.
      ends: ids that end a completion.
    """

    name: str
    vocabulary: Vocabulary
    template: Template | None
    context: int
    ids: int
    limits: CallLimits
    begin: tuple[int, ...]
    ends: tuple[int, ...]

    def check_model(self, name: str) -> None:
        """404 for another model than the one that is served."""
        if name != self.name:
            raise Refusal(404, f"there is no model {shown(name)}; /v1/models lists what there is", param="model",
                          code="model_not_found")  # fmt: skip


def completion_requests(served: Served, call: Completion) -> list[Request]:
    """One request a prompt; text has `Served.begin` before it, token ids are taken as they are.

    Raises:
      Refusal: another model's name, ids that there are not, no room to answer, no sentinels to infill with.
    """
    served.check_model(call.options.model)
    prompts = [_prompt(served, prompt, call.suffix) for prompt in call.prompts]
    return [_request(served, prompt, call.options, served.ends, "prompt") for prompt in prompts]


def chat_requests(served: Served, call: Chat) -> list[Request]:
    """The one request of a conversation.

    Raises:
      Refusal: another model's name, roles that the template does not know, no template, no room to answer.
    """
    served.check_model(call.options.model)
    template = served.template
    if template is None:
        raise invalid("this model has no chat template; use /v1/completions", "messages", "no_chat_template")
    _refuse_long(served, sum(len(message.content) for message in call.messages), "messages")
    try:
        prompt = template.tokens(call.messages, served.vocabulary, think=False)
    except ValueError as error:
        raise invalid(str(error), "messages") from None
    return [_request(served, prompt, call.options, template.stop_ids(served.vocabulary), "messages")]


def _prompt(served: Served, prompt: str | tuple[int, ...], suffix: str | None) -> Sequence[int]:
    before = _encoded(served, prompt, "prompt") if isinstance(prompt, str) else list(prompt)
    if before and max(before) >= served.ids:
        raise invalid(f"prompt has an id outside 0..{served.ids - 1}", "prompt")
    if suffix is None:
        return [*served.begin, *before] if isinstance(prompt, str) else before
    names, specials = (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX), served.vocabulary.specials
    if not specials.keys() >= set(names):
        raise unsupported("suffix", "this model's vocabulary has no sentinels to fill in the middle with")
    if not isinstance(prompt, str):
        raise unsupported("suffix", "with it the prompt must be text")
    after = _encoded(served, suffix, "suffix")
    return [*served.begin, *infilling_prompt(before, after, Sentinels(*map(specials.__getitem__, names)))]


def _encoded(served: Served, text: str, param: str) -> list[int]:
    _refuse_long(served, len(text), param)
    try:
        return served.vocabulary.encode(text)
    except ValueError as error:
        raise invalid(f"{param}: {error}", param) from None


def _refuse_long(served: Served, characters: int, param: str) -> None:
    """Refuses what cannot fit whatever its tokens are, before time is spent on them."""
    most = served.context * int(served.vocabulary.byte_lengths.max(initial=1))
    if characters > most:
        message = f"{param} has {characters} characters; the context of {served.context} tokens holds {most} at most"
        raise invalid(message, param, "context_length_exceeded")


def _request(served: Served, prompt: Sequence[int], options: Options, stops: tuple[int, ...], param: str) -> Request:
    room = served.context - len(prompt)
    if not prompt:
        raise invalid("the prompt has no token", param)
    if room < 1 or (options.max_tokens or 1) > room:
        asked = f" and {options.max_tokens} of the answer" if options.max_tokens else ""
        message = f"{len(prompt)} tokens of the prompt{asked} do not fit the model's context of {served.context} tokens"
        raise invalid(message, param if room < 1 else "max_tokens", "context_length_exceeded")
    if any(token >= served.ids for token in options.stop_ids):
        raise invalid(f"stop_token_ids has an id outside 0..{served.ids - 1}", "stop_token_ids")
    sampling = options.sampling
    if not options.seeded:
        sampling = dataclasses.replace(sampling, seed=secrets.randbelow(MOST_SEEDS))
    return Request(
        prompt=tuple(prompt),
        new_tokens=options.max_tokens or min(room, served.limits.max_tokens),
        sampling=sampling,
        stop_ids=tuple(dict.fromkeys((*stops, *options.stop_ids))),
        stop=options.stop,
        samples=options.samples,
    )
