"""What a request in OpenAI's form asks for, checked field by field, and errors in that form.

Fields that this server does not know are refused by name: a client that asks for something must not
believe that it got it. ``top_k``, ``min_p``, ``repetition_penalty`` and ``ignore_eos`` are beyond
OpenAI's; vLLM has them under the same names.

Source: OpenAI's API reference, "Create completion", "Create chat completion" and "Error codes".

Chapter: Serving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_TEXTS = 32  # prompts times n
MOST_STOPS = 4
MOST_LOGPROBS = {False: 5, True: 20}  # completions, chat
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier"}
# Fields that are fine with the value that changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
BOTH = {
    *("model", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "logprobs"),
    *("stop", "seed", "top_k", "min_p", "repetition_penalty", "ignore_eos"),
}
KNOWN = {
    False: BOTH | {"prompt"},
    True: BOTH | {"messages", "max_completion_tokens", "top_logprobs"},
}


class BadRequest(Exception):
    """An error that the client is told in OpenAI's form.

    Args:
        message: what is wrong, and the remedy.
        status: of HTTP.
        kind, code, param: OpenAI's ``type``, ``code`` and ``param``.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


@dataclass(frozen=True)
class Ask:
    """A request, checked. ``prompts`` are strings or token ids, or one list of messages (chat)."""

    chat: bool
    model: str | None
    prompts: tuple[Any, ...]
    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    n: int
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    logprobs: int | None
    ignore_eos: bool


def parse(body: Mapping[str, Any], chat: bool) -> Ask:
    """The request of a JSON object.

    Args:
        body: as it was sent.
        chat: whether it was sent to ``/v1/chat/completions``.

    Raises: BadRequest, naming the field.
    """
    for key, value in body.items():
        if key in NEUTRAL and not any(value == one and _alike(value, one) for one in NEUTRAL[key]):
            raise BadRequest(f"'{key}' is not supported here: leave it out", param=key)
        if key not in KNOWN[chat] | IGNORED | set(NEUTRAL):
            raise BadRequest(f"'{key}' is not a field of this request", param=key)
    get = _Fields(body)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest("'model' is the name of a model", param="model")
    prompts = _messages(body) if chat else _prompts(body)
    limit = get.whole("max_tokens", None if chat else 16, 1, 1 << 31)
    if chat:
        limit = get.whole("max_completion_tokens", limit, 1, 1 << 31)
    n = get.whole("n", 1, 1, MOST_TEXTS) or 1
    if len(prompts) * n > MOST_TEXTS:
        raise BadRequest(
            f"{len(prompts)} prompts {n} times: at most {MOST_TEXTS} texts a request", param="n"
        )
    stream = get.truth("stream", False)
    options = body.get("stream_options")
    if options is not None and (not stream or not isinstance(options, dict)):
        raise BadRequest(
            "'stream_options' is an object, with 'stream': true", param="stream_options"
        )
    usage = _Fields(options or {}).truth("include_usage", False)
    temperature = get.number("temperature", 1.0, 0.0, 2.0)
    top_p = get.number("top_p", 1.0, 0.0, 1.0)
    if top_p == 0:  # OpenAI takes it: the likeliest token alone
        temperature, top_p = 0.0, 1.0
    return Ask(
        chat,
        model,
        prompts,
        limit,
        temperature,
        # vLLM writes -1 for all.
        max(0, get.whole("top_k", 0, -1, 1 << 31) or 0),
        top_p,
        get.number("min_p", 0.0, 0.0, 1.0),
        get.number("repetition_penalty", 1.0, 0.01, 100.0),
        n,
        get.whole("seed", None, -(1 << 63), (1 << 63) - 1),
        _stop(body),
        stream,
        usage,
        _top(get, chat),
        get.truth("ignore_eos", False),
    )


def tokens_of(tokenizer: Any, ask: Ask) -> list[list[int]]:
    """Token ids of each prompt. Raises: BadRequest for a chat without a template, or no tokens."""
    if ask.chat:
        if not getattr(tokenizer, "chat_template", None):
            raise BadRequest(
                "the tokenizer of this model has no chat template: send the text to "
                "/v1/completions instead",
                code="chat_template_missing",
            )
        try:
            text = tokenizer.apply_chat_template(
                list(ask.prompts), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template may refuse what it does not like
            raise BadRequest(f"the chat template refuses this: {error}", param="messages") from None
        # The template has written the token that begins a text.
        return [list(tokenizer(text, add_special_tokens=False)["input_ids"])]
    found = []
    for prompt in ask.prompts:
        ids = (
            list(tokenizer(prompt, verbose=False)["input_ids"])
            if isinstance(prompt, str)
            else list(prompt)
        )
        if not ids:
            raise BadRequest("the prompt is empty: give at least a word", param="prompt")
        found.append(list(ids))
    return found


def _alike(a: Any, b: Any) -> bool:
    """Whether one of both is a truth value where the other is not: 0 == False in Python."""
    return isinstance(a, bool) == isinstance(b, bool)


@dataclass(frozen=True)
class _Fields:
    """Fields of an object, by kind. null is as good as absent."""

    body: Mapping[str, Any]

    def whole(self, name: str, default: int | None, least: int, most: int) -> int | None:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            most_said = f"to {most}" if most < 1 << 31 else "or more"
            raise BadRequest(f"'{name}' is a whole number, {least} {most_said}", param=name)
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.body.get(name)
        if value is None:
            return default
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not least <= value <= most:
            raise BadRequest(f"'{name}' is a number from {least:g} to {most:g}", param=name)
        return float(value)

    def truth(self, name: str, default: bool) -> bool:
        value = self.body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadRequest(f"'{name}' is true or false", param=name)
        return value


def _prompts(body: Mapping[str, Any]) -> tuple[Any, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, str) or _is_ids(prompt):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(one, str) for one in prompt) or all(_is_ids(one) for one in prompt):
            return tuple(prompt)
    raise BadRequest(
        "'prompt' is a string, a list of strings, of token ids, or of lists of token ids",
        param="prompt",
    )


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, int) and not isinstance(t, bool) and abs(t) < 1 << 31 for t in value)
    )


def _messages(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """One list of messages counts as one prompt. Parts of a message that are text are joined."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest(
            "'messages' is a list of objects with 'role' and 'content'", param="messages"
        )
    found = []
    for one in messages:
        content = one.get("content") if isinstance(one, dict) else None
        if isinstance(content, list):
            parts: list[Any] = [p.get("text") if isinstance(p, dict) else None for p in content]
            content = "".join(parts) if all(isinstance(p, str) for p in parts) else None
        if not isinstance(content, str) or not isinstance(one.get("role"), str):
            raise BadRequest("each message has a 'role' and a 'content' of text", param="messages")
        found.append({"role": one["role"], "content": content})
    return tuple(found)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    good = isinstance(stops, list) and all(isinstance(s, str) and s for s in stops)
    if not good or len(stops) > MOST_STOPS:
        raise BadRequest(f"'stop' is a string, or up to {MOST_STOPS} of them", param="stop")
    return tuple(stops)


def _top(get: _Fields, chat: bool) -> int | None:
    most = MOST_LOGPROBS[chat]
    if not chat:
        return get.whole("logprobs", None, 0, most)
    count = get.whole("top_logprobs", 0, 0, most)
    if get.truth("logprobs", False):
        return count
    if count:
        raise BadRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    return None
