"""A web server that speaks the protocol of OpenAI's completions.

    GET  /v1/models              what is served
    POST /v1/completions         continue a prompt
    POST /v1/chat/completions    the same through the tokenizer's chat template
    GET  /health                 200 while requests are taken, else 503
    GET  /metrics                counts and times for Prometheus

Source: the API reference of OpenAI (completions, chat completions, errors, streaming); Prometheus'
text exposition format, version 0.0.4.

Chapter: Serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlab.errors import QlabError
from qlab.serve.batching import Full, Worker
from qlab.serve.metrics import Metrics
from qlab.serve.protocol import Ask, BadRequest, parse, tokens_of
from qlab.serve.scheduler import Event, Handle, Request, Scheduler
from qlab.serve.text import TextStream

MOST_BYTES = 1 << 20  # of a request


@dataclass(eq=False)
class Service:
    """One model that is served.

    Attributes:
        name: as requests call it.
        engine, tokenizer, worker, metrics: what serves it.

    Chapter: Serving.
    """

    name: str
    engine: Any
    tokenizer: Any
    worker: Worker
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))


def make_app(
    source: Any = None,
    *,
    name: str | None = None,
    scheme: str | None = None,
    method: str = "rtn",
    max_running: int = 8,
    blocks: int | None = None,
    step_tokens: int = 256,
    kind: str = "fp32",
    threads: int | None = None,
    max_waiting: int = 128,
    api_key: str | None = None,
    observe: Callable[[str, Handle], None] | None = None,
    choose: Callable[[str, Mapping[str, Any]], str] | None = None,
    grace: float = 10.0,
) -> Any:
    """A Starlette application that serves one model or several.

    Args:
        source: as for ``qlab.engine.load``, an engine, or a mapping of names to engines. Each
            engine needs a tokenizer.
        name: of a single model (default: that of the source).
        scheme, method: quantize the weights first (not for engines, nor for GGUF files).
        max_running, blocks, step_tokens, kind: as for ``Scheduler``, for each model.
        threads: processors that a step may use (default: as the engine was made).
        max_waiting: requests that may wait for a model; more get the status 429.
        api_key: where given, requests must carry ``Authorization: Bearer API_KEY``.
        observe: called with (name of the model, handle) for each text that has ended, in the thread
            of the model.
        choose: called with (name asked for, body) for each request; returns the name of the model
            that answers.
        grace: seconds that texts have to end when the server stops.

    Returns: an application; ``app.state.services`` maps names to ``Service``.

    Raises: QlabError for a source that the engine cannot serve, or where the extra ``serve`` is
        not installed.

    Chapter: Serving.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError:
        raise QlabError("serving needs Starlette and uvicorn: pip install 'qlab[serve]'") from None

    services = {}
    for title, engine in _engines(source, name, scheme, method).items():
        if threads is not None:
            if threads < 1:
                raise QlabError(f"threads {threads}: at least 1")
            engine.threads = threads
        scheduler = Scheduler(engine, max_running, blocks, step_tokens, kind)
        scheduler.warm_up()
        metrics = Metrics(title, scheduler)
        worker = Worker(scheduler, max_waiting, _observer(title, metrics, observe))
        services[title] = Service(title, engine, engine.tokenizer, worker, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        for service in services.values():
            service.worker.start()
        yield
        for service in services.values():
            await asyncio.to_thread(service.worker.stop, grace)

    server = _Server(services, api_key, choose)
    app = Starlette(
        routes=[
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.model),
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/health", server.health),
            Route("/metrics", server.metrics),
        ],
        lifespan=lifespan,
        exception_handlers={404: server.not_found, 405: server.not_found, 500: server.broken},
    )
    app.state.services = services
    return app


def _engines(source: Any, name: str | None, scheme: str | None, method: str) -> dict[str, Any]:
    if isinstance(source, Mapping):
        if not source:
            raise QlabError("no engines to serve: give at least one")
        return dict(source)
    if getattr(source, "is_engine", False):
        return {name or "qlab": source}
    from qlab.engine import load

    title = name or (str(source) if isinstance(source, str) else "story")
    if scheme is None:
        return {title: load(source)}
    from qlab import quantize_model
    from qlab.methods import get_method
    from qlab.sources import load as load_model

    if str(source).endswith(".gguf"):
        raise QlabError(f"'{source}' is quantized already: leave out the scheme")
    found = load_model(source) if source is None or not hasattr(source, "model") else source
    data = found.calibration() if get_method(method).needs_calibration else None
    small, _ = quantize_model(found.model, method, scheme, data, progress=False)
    engine = load(_Pair(small, found.tokenizer))
    return {title: engine}


@dataclass
class _Pair:
    """A model with its tokenizer, as the engine takes them."""

    model: Any
    tokenizer: Any


def _observer(
    name: str, metrics: Metrics, observe: Callable[[str, Handle], None] | None
) -> Callable[[Handle], None]:
    def ended(handle: Handle) -> None:
        metrics.ended(handle)
        if observe is not None:
            observe(name, handle)

    return ended


class _Server:
    """The endpoints."""

    def __init__(
        self,
        services: dict[str, Service],
        api_key: str | None,
        choose: Callable[[str, Mapping[str, Any]], str] | None,
    ) -> None:
        self.services, self._key, self._choose = services, api_key, choose

    # --- small ones ---------------------------------------------------------------------------

    async def models(self, request: Any) -> Any:
        try:
            self._admit(request)
        except BadRequest as error:
            return _error(error)
        return _json({"object": "list", "data": [_card(s) for s in self.services.values()]})

    async def model(self, request: Any) -> Any:
        try:
            self._admit(request)
            return _json(_card(self._service(request.path_params["name"])))
        except BadRequest as error:
            return _error(error)

    async def health(self, request: Any) -> Any:
        state = {s.name: "ok" if s.worker.alive else "stopped" for s in self.services.values()}
        good = all(word == "ok" for word in state.values())
        text = {"status": "ok" if good else "unavailable", "models": state}
        return _json(text, 200 if good else 503)

    async def metrics(self, request: Any) -> Any:
        from starlette.responses import Response

        from qlab.serve.metrics import render

        text = render([s.metrics for s in self.services.values()])
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def not_found(self, request: Any, error: Any) -> Any:
        what = f"{request.method} {request.url.path}"
        return _error(BadRequest(f"there is no {what} here", status=error.status_code))

    async def broken(self, request: Any, error: Exception) -> Any:
        return _error(BadRequest("the server failed; its log says why", status=500))

    # --- completions --------------------------------------------------------------------------

    async def completions(self, request: Any) -> Any:
        return await self._answer(request, chat=False)

    async def chat(self, request: Any) -> Any:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Any, chat: bool) -> Any:
        from starlette.responses import StreamingResponse

        answer = None
        try:
            self._admit(request)
            body = await _body(request)
            ask = parse(body, chat)
            model = ask.model or next(iter(self.services))
            self._service(model)  # a name that is not served is refused before anybody chooses
            if self._choose is not None:
                model = self._choose(model, body)
            answer = _Answer(self._service(model), ask)
            answer.start()
        except BadRequest as error:
            return _error(error)
        except Full as error:
            return _error(BadRequest(str(error), status=429, kind="rate_limit_error"))
        except QlabError as error:
            return _error(BadRequest(str(error)))
        if ask.stream:
            return StreamingResponse(
                answer.stream(),
                media_type="text/event-stream",
                headers={"cache-control": "no-cache"},
            )
        gone = asyncio.create_task(_disconnected(request))
        whole = asyncio.create_task(answer.whole())
        try:
            await asyncio.wait({gone, whole}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            answer.cancel()  # nothing where all has ended
        if not whole.done():
            whole.cancel()
            return _error(BadRequest("the client went away", status=499))
        try:
            return _json(whole.result())
        except BadRequest as error:
            return _error(error)

    def _service(self, name: str) -> Service:
        if name not in self.services:
            raise BadRequest(
                f"the model '{name}' is not served here: there is {', '.join(self.services)}",
                status=404,
                code="model_not_found",
                param="model",
            )
        return self.services[name]

    def _admit(self, request: Any) -> None:
        if self._key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise BadRequest(
                "a wrong key, or none: send the header 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )


class _Answer:
    """All texts of one request, and their way to the client."""

    def __init__(self, service: Service, ask: Ask) -> None:
        self.service, self.ask = service, ask
        kind = "chatcmpl" if ask.chat else "cmpl"
        self.id, self.created = f"{kind}-{secrets.token_hex(12)}", int(time.time())
        self.prompts = tokens_of(service.tokenizer, ask)
        self.requests, self.texts = [], []
        for i, ids in enumerate(self.prompts):
            room = service.engine.context - len(ids)
            count = max(room, 1) if ask.max_tokens is None else ask.max_tokens
            for j in range(ask.n):
                seed = secrets.randbits(63) if ask.seed is None else ask.seed + i * ask.n + j
                self.requests.append(
                    Request(
                        ids,
                        count,
                        ask.temperature,
                        ask.top_k,
                        ask.top_p,
                        ask.min_p,
                        seed,
                        () if ask.ignore_eos else None,
                        ask.logprobs,
                        ask.repetition_penalty,
                    )
                )
                self.texts.append(TextStream(service.tokenizer, ids, ask.stop))
        self.reasons: list[str | None] = [None] * len(self.requests)
        self.events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.handles: list[Handle] = []

    def start(self) -> None:
        """Put all texts into the line, or none."""
        loop = asyncio.get_running_loop()

        def listen(i: int) -> Callable[[Event], None]:
            def heard(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the server's loop has ended
                    loop.call_soon_threadsafe(self.events.put_nowait, (i, event))

            return heard

        try:
            for i, request in enumerate(self.requests):
                self.handles.append(self.service.worker.submit(request, listen(i)))
        except QlabError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End what still runs."""
        for handle in self.handles:
            if handle.finish_reason is None:
                self.service.worker.cancel(handle)

    async def parts(self) -> AsyncIterator[tuple[int, str, Event]]:
        """(which text, what is new in it, the event) until all have ended."""
        left = len(self.requests)
        while left:
            i, event = await self.events.get()
            if self.reasons[i] is not None:  # it met a stop string, and ends
                left -= event.kind == "finished"
                continue
            text = self.texts[i]
            if event.kind == "token" and event.token is not None:
                new = text.add(event.token)
                if text.stopped:
                    self.reasons[i] = "stop"
                    self.service.worker.cancel(self.handles[i])
            else:
                new, left = text.end(), left - 1
                reason = event.handle.finish_reason or "error"
                self.reasons[i] = "stop" if text.stopped else reason
                if reason == "error":
                    raise BadRequest(
                        f"the model failed: {self.service.worker.failure}",
                        status=500,
                        kind="server_error",
                    )
                if reason == "cancelled":
                    raise BadRequest("the server is going down", status=503, kind="server_error")
            yield i, new, event

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        heard: list[list[tuple[str, Event]]] = [[] for _ in self.requests]
        async for i, new, event in self.parts():
            if event.kind == "token":
                heard[i].append((new, event))
        choices = []
        for i, events in enumerate(heard):
            text, reason = self.texts[i].text, self.reasons[i]
            body = (
                {"message": {"role": "assistant", "content": text}}
                if self.ask.chat
                else {"text": text}
            )
            logprobs = self._logprobs([event for _, event in events], 0)
            choices.append({"index": i, **body, "logprobs": logprobs, "finish_reason": reason})
        kind = "chat.completion" if self.ask.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self._usage()}

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events, a piece of text at a time."""
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        offsets = [0] * len(self.requests)
        pending: list[list[Event]] = [[] for _ in self.requests]
        try:
            if self.ask.chat:
                for i in range(len(self.requests)):
                    delta = {"role": "assistant", "content": ""}
                    yield self._line(kind, i, {"delta": delta}, None, None)
            async for i, new, event in self.parts():
                if event.kind == "token":
                    pending[i].append(event)
                reason = self.reasons[i]
                if not new and reason is None:
                    continue
                logprobs = self._logprobs(pending[i], offsets[i])
                offsets[i] += len(new)
                pending[i] = []
                content = (
                    {"delta": {"content": new} if new else {}} if self.ask.chat else {"text": new}
                )
                yield self._line(kind, i, content, logprobs, reason)
            if self.ask.usage:
                text = {**self._head(kind), "choices": [], "usage": self._usage()}
                yield f"data: {json.dumps(text)}\n\n"
        except BadRequest as error:
            yield f"data: {json.dumps(error.body())}\n\n"
        finally:
            self.cancel()  # the client went away, or nothing is left
        yield "data: [DONE]\n\n"

    def _line(
        self, kind: str, i: int, content: dict[str, Any], logprobs: Any, reason: str | None
    ) -> str:
        choice = {"index": i, **content, "logprobs": logprobs, "finish_reason": reason}
        text = {**self._head(kind), "choices": [choice]}
        if self.ask.usage:
            text["usage"] = None
        return f"data: {json.dumps(text)}\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.service.name,
        }

    def _usage(self) -> dict[str, int]:
        read = sum(len(ids) for ids in self.prompts)
        written = sum(len(handle.tokens) for handle in self.handles)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }

    def _logprobs(self, events: list[Event], offset: int) -> dict[str, Any] | None:
        """As the two endpoints write them; ``offset``: characters of the text before."""
        if self.ask.logprobs is None:
            return None
        word = self._word
        if self.ask.chat:
            content = []
            for event in events:
                top = [
                    {"token": word(t), "logprob": p, "bytes": list(word(t).encode())}
                    for t, p in event.top
                ]
                one = word(event.token)
                content.append(
                    {
                        "token": one,
                        "logprob": event.logprob,
                        "bytes": list(one.encode()),
                        "top_logprobs": top,
                    }
                )
            return {"content": content}
        tokens = [word(event.token) for event in events]
        offsets = []
        for one in tokens:
            offsets.append(offset)
            offset += len(one)
        return {
            "tokens": tokens,
            "token_logprobs": [event.logprob for event in events],
            "top_logprobs": [{word(t): p for t, p in event.top} for event in events],
            "text_offset": offsets,
        }

    def _word(self, token: int | None) -> str:
        return str(self.service.tokenizer.decode([token]))


async def _body(request: Any) -> dict[str, Any]:
    """The JSON object of a request. Raises: BadRequest."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            raise BadRequest(f"more than {MOST_BYTES:,} bytes: send less", status=413)
    try:
        body = json.loads(found)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object")
    return body


async def _disconnected(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _card(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "qlab",
        "max_model_len": service.engine.context,
    }


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse(content, status, headers)


def _error(error: BadRequest) -> Any:
    headers = {"retry-after": "1"} if error.status == 429 else None
    return _json(error.body(), error.status, headers)
