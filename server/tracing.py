"""One OpenTelemetry span for each request that asks for the model's work; an optional extra.

The attributes are those of the GenAI conventions, the times those that vLLM adds to them. Nothing
of a prompt, an answer or a key is in a span.
"""

# The extra's packages need not be there.
# pyright: reportMissingImports=false

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import halfbyte
from halfbyte.errors import ConfigError

from .job import Call

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

# Seconds that spans have to leave: for one attempt, and when the server ends.
_EXPORT_S = 5.0
_FLUSH_S = 5.0
_TRACES = "/v1/traces"
_SERVICE = "service.name"
_HEADERS = ("traceparent", "tracestate")


class RequestTracer:
    """Makes spans of requests that have ended.

    Args:
        tracer: OpenTelemetry's.
        operations: path -> GenAI name of what is done there; other paths give no span.
        shutdown: sends what is left; called once, by `close`.
    """

    def __init__(
        self,
        tracer: Tracer,
        operations: Mapping[str, str],
        shutdown: Callable[[], object] = lambda: None,
    ) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._operations = operations
        self._shutdown = shutdown
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Mapping[str, Any], call: Call, status: int, seconds: float) -> None:
        """Make the span of a request that ends now.

        Args:
            scope: of ASGI.
            call: the request's record.
            status: of the response.
            seconds: since it began.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = self._operations.get(scope["path"])
        if operation is None:
            return
        end = time.time_ns()
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        carrier = {name: headers[name] for name in _HEADERS if name in headers}
        attributes = _attributes(operation, call, seconds)
        attributes |= {
            "http.request.method": scope["method"],
            "http.route": scope["path"],
            "http.response.status_code": status,
        }
        if status >= 400:
            attributes["error.type"] = call.finish or str(status)
        span = self._tracer.start_span(
            f"{operation} {call.model}".rstrip(),
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=end - int(seconds * 1e9),
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Send what is left, within a few seconds."""
        # A receiver that does not answer must not keep the server from ending.
        thread = threading.Thread(target=self._shutdown, daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def otlp_tracer(endpoint: str, operations: Mapping[str, str]) -> RequestTracer:
    """A tracer that sends to a receiver of OTLP over HTTP.

    OpenTelemetry's own variables hold for the rest: OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER.

    Args:
        endpoint: URL; one without a path gets ``/v1/traces``.
        operations: as for `RequestTracer`.

    Raises:
        ConfigError: the URL is none, or the packages are not installed.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ConfigError(
            f"--otlp-endpoint is {endpoint!r:.200}; expected http://HOST:PORT or https://, with a "
            "path or without, and no password in it"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"--otlp-endpoint is {endpoint}; spans need packages that are not installed: "
            f"{error.name or error}",
            hint="pip install 'halfbyte[otel]'",
        ) from None
    url = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + _TRACES
    resource = Resource.create({"service.version": halfbyte.__version__})
    if str(resource.attributes[_SERVICE]).startswith("unknown_service"):
        resource = resource.merge(Resource({_SERVICE: "halfbyte"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=url, timeout=_EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("halfbyte", halfbyte.__version__)
    return RequestTracer(tracer, operations, provider.shutdown)


def _attributes(operation: str, call: Call, seconds: float) -> dict[str, Any]:
    """What the GenAI conventions, and vLLM, call what is known of a request."""
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "halfbyte",
        "gen_ai.request.id": call.request_id,
        "gen_ai.latency.e2e": seconds,
    }
    if call.model:
        found["gen_ai.request.model"] = found["gen_ai.response.model"] = call.model
    if call.prompt_tokens:
        found["gen_ai.usage.input_tokens"] = call.prompt_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = call.cached_tokens
        found["gen_ai.usage.output_tokens"] = call.completion_tokens
    if call.finish:
        found["gen_ai.response.finish_reasons"] = call.finish.split("+")
    if call.ttft_s is not None:
        found["gen_ai.latency.time_to_first_token"] = call.ttft_s
    if call.queue_s is not None:
        found["gen_ai.latency.time_in_queue"] = call.queue_s
    asked = call.params
    if asked is not None and operation != "embeddings":
        found["gen_ai.request.max_tokens"] = asked.max_tokens
        found["gen_ai.request.temperature"] = asked.temperature
        found["gen_ai.request.top_p"] = asked.top_p
        found["gen_ai.request.top_k"] = asked.top_k
        found["gen_ai.request.seed"] = asked.seed
        found["gen_ai.request.choice.count"] = asked.n
    return {name: value for name, value in found.items() if value is not None}
