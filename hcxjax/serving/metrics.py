"""What is counted, in Prometheus' form."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hcxjax.inference.requests import Delta

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, open files; on Linux
        self.requests = Counter(
            "hcxjax_requests", "HTTP requests that were answered", ("route", "status"), registry=self._registry
        )
        self.prompt_tokens = Counter("hcxjax_prompt_tokens", "tokens of prompts taken", registry=self._registry)
        self.generated_tokens = Counter("hcxjax_generated_tokens", "tokens written", registry=self._registry)
        self.cancelled = Counter(
            "hcxjax_cancelled", "calls given up before their end", ("reason",), registry=self._registry
        )
        self.first_token = Histogram(
            "hcxjax_time_to_first_token_seconds",
            "from a request's arrival to its first token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.duration = Histogram(
            "hcxjax_request_duration_seconds",
            "from a request's arrival to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A number that is read when it is asked for."""
        Gauge(f"hcxjax_{name}", meaning, registry=self._registry).set_function(value)

    def observe(self, deltas: Sequence[Delta]) -> None:
        """A round of the engine."""
        self.generated_tokens.inc(sum(len(delta.tokens) for delta in deltas))

    def exposed(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
