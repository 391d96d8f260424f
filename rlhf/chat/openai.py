"""An endpoint that clients of OpenAI's API talk to: models, chat completions and completions.

A request that asks for what is not there is refused, never answered as if it had not asked.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf.chat.http import is_same
from rlhf.chat.model import Answer, ChatModel, Draw, Messages, TooLong, describe_unreadable
from rlhf.chat.stream import StopCutter
from rlhf.config.errors import ConfigError
from rlhf.config.rollouts import SAMPLING
from rlhf.config.schema import Rollout
from rlhf.config.values import check_values
from rlhf.data.cells import CellError, Dropped, read_messages

# What decides nothing here, whatever it is.
UNREAD = {"user", "metadata", "store", "stream_options", "service_tier", "safety_identifier", "prompt_cache_key"}
READ = {
    "model", "messages", "prompt", "stream", "seed", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens",
    "stop", "n",
}  # fmt: skip
# Values at which other parameters ask for nothing.
NOTHING: tuple[Any, ...] = (None, False, 0, [], {}, {"type": "text"}, "none")
SEEDS, MOST_CHOICES = 2**31, 128
Content = dict[str, Any]


class Refused(Exception):
    """A request that cannot be answered: the status, what is wrong, and with which parameter."""

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "authentication_error" if status == 401 else "invalid_request_error"
        self.status = status
        self.content = {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


@dataclass(frozen=True)
class Reply:
    """The answers to a request: its kind (`chat.completion` or `text_completion`), how they are named, and where each of
    them stops."""

    kind: str
    model: str
    answers: Sequence[Answer]
    stops: Sequence[str]
    name: str
    created: int

    def whole(self) -> Content:
        """Return all answers at once."""
        choices = []
        for index, answer in enumerate(self.answers):
            cut = CutAnswer(answer, self.stops)
            text = "".join(cut)
            said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
            choices.append({"index": index, **said, "finish_reason": cut.reason, "logprobs": None})
        read, written = self.answers[0].prompt_tokens, sum(len(answer.tokens) for answer in self.answers)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {**self.head(self.kind), "choices": choices, "usage": usage}

    def events(self) -> Iterator[str]:
        """Yield the answers as server-sent events, piece by piece, one answer after another."""
        kind = f"{self.kind}.chunk" if self.is_chat else self.kind
        for index, answer in enumerate(self.answers):
            if self.is_chat:
                yield self.event(kind, index, {"delta": {"role": "assistant", "content": ""}}, None)
            cut = CutAnswer(answer, self.stops)
            for piece in filter(None, cut):
                yield self.event(kind, index, {"delta": {"content": piece}} if self.is_chat else {"text": piece}, None)
            yield self.event(kind, index, {"delta": {}} if self.is_chat else {"text": ""}, cut.reason)
        yield "data: [DONE]\n\n"

    @property
    def is_chat(self) -> bool:
        """Whether the answers are messages."""
        return self.kind == "chat.completion"

    def head(self, kind: str) -> Content:
        """Return what all parts of a reply begin with."""
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def event(self, kind: str, index: int, said: Content, reason: str | None) -> str:
        """Return a server-sent event."""
        choice = {"index": index, **said, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**self.head(kind), 'choices': [choice]}, ensure_ascii=False)}\n\n"


@dataclass
class CutAnswer:
    """An answer that is written up to the first of some texts; `reason` is why it ended then, `stop` or `length`."""

    answer: Answer
    stops: Sequence[str]
    reason: str = "stop"

    def __iter__(self) -> Iterator[str]:
        cutter = StopCutter(self.stops)
        for piece in self.answer:
            yield cutter.push(piece)
            if cutter.has_stopped:
                return
        self.reason = "stop" if self.answer.ended else "length"
        yield cutter.finish()


class Endpoint:
    """Answers the requests of clients.

    Args:
        models: The models by the names that requests give, each with how it is sampled unless a request says otherwise.
        key: What requests must bring as `Authorization: Bearer KEY`; None for nothing.
    """

    def __init__(self, models: Mapping[str, tuple[ChatModel, Rollout]], key: str | None) -> None:
        self.models, self.key, self.started = models, key, int(time.time())

    def check_key(self, header: str | None) -> None:
        """Raise Refused for a request without the key."""
        if self.key is not None and not is_same((header or "").removeprefix("Bearer "), self.key):
            raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")

    def list_models(self) -> Content:
        """Return the models."""
        known = [
            {"id": name, "object": "model", "created": self.started, "owned_by": "rlhf", "fingerprint": model.fingerprint}
            for name, (model, _) in self.models.items()
        ]
        return {"object": "list", "data": known}

    def reply(self, request: Any, is_chat: bool) -> Reply:
        """Begin the answers to a request. Raises Refused."""
        if not isinstance(request, dict):
            raise Refused(400, "the body is no JSON object")
        for name, value in request.items():
            if name not in READ | UNREAD and value not in NOTHING:
                raise Refused(400, f"{name} is not supported", name)
        name = str(request.get("model"))
        if name not in self.models:
            raise Refused(404, f"there is no model {name!r}; there is {', '.join(self.models)}", "model", "model_not_found")
        model, rollout = self.models[name]
        rollout, stops = read_sampling(request, rollout)
        seed, count = read_whole(request, "seed", 0, 2**63), read_whole(request, "n", 1, MOST_CHOICES)
        draws = [Draw(secrets.randbelow(SEEDS) if seed is None else seed, 0, number) for number in range(count or 1)]
        try:
            if is_chat:
                messages = read_chat(request)
                answers = [model.answer_whole(messages, rollout, draw) for draw in draws]
            else:
                answers = [model.complete(read_prompt(request), rollout, draw) for draw in draws]
        except (TooLong, Dropped) as error:
            code = "context_length_exceeded" if isinstance(error, TooLong) else None
            raise Refused(400, describe_unreadable(error), "messages" if is_chat else "prompt", code) from error
        kind, prefix = ("chat.completion", "chatcmpl") if is_chat else ("text_completion", "cmpl")
        return Reply(kind, name, answers, stops, f"{prefix}-{secrets.token_hex(12)}", int(time.time()))


def read_chat(request: Content) -> Messages:
    """Return the conversation of a request; the parts of a message that are text are joined. Raises Refused."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages is no list of messages", "messages")
    joined = [join_parts(message) for message in messages]
    try:
        found = read_messages({"messages": joined}, "messages")
    except (CellError, Dropped, TypeError, StopIteration) as error:
        raise Refused(400, f"messages cannot be read ({error})", "messages") from error
    if not found or found[-1].role != "user":
        raise Refused(400, "the last message is not the user's", "messages")
    return found


def join_parts(message: Any) -> Any:
    """Return a message whose content is one text. Raises Refused for a part that is no text, as an image."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
        raise Refused(400, "only text can be read", "messages")
    return {**message, "content": "".join(str(part.get("text")) for part in content)}


def read_prompt(request: Content) -> str:
    """Return the prompt of a completion. Raises Refused."""
    prompt = request.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise Refused(400, "prompt is no text; lists are not supported", "prompt")
    return prompt


def read_sampling(request: Content, rollout: Rollout) -> tuple[Rollout, list[str]]:
    """Return how a request is sampled, and the texts that stop it. Temperature 0 takes the likeliest tokens. Raises
    Refused."""
    given: Content = {}
    for name in ("temperature", "top_p", "top_k"):
        value = request.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Refused(400, f"{name} is no number", name)
        if value is not None:
            given[name] = type(getattr(rollout, name))(value)
    if given.get("temperature") == 0.0:
        given = {"do_sample": False, "top_k": 0, "top_p": 1.0}
    most = read_whole(request, "max_completion_tokens", 1, 2**31)
    most = read_whole(request, "max_tokens", 1, 2**31) if most is None else most
    rollout = replace(rollout, **given, max_new_tokens=rollout.max_new_tokens if most is None else most)
    for error, _ in check_values({f"rollout.{key}": getattr(rollout, key) for key in SAMPLING}):
        raise Refused(400, describe_error(error), error.key.removeprefix("rollout."))
    stops = request.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refused(400, "stop is no text and no list of texts", "stop")
    return rollout, stops


def describe_error(error: ConfigError) -> str:
    """Say what is wrong with a parameter."""
    return f"{error.key.removeprefix('rollout.')}={error.value}: {error.problem}; {error.fix}"


def read_whole(request: Content, name: str, least: int, most: int) -> int | None:
    """Return a whole number of a request; None where it is not given. Raises Refused."""
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < most:
        raise Refused(400, f"{name} is no whole number of at least {least}", name)
    return value


def build_app(endpoint: Endpoint) -> Any:
    """Return the application that a server runs."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.concurrency import run_in_threadpool

    app = FastAPI(title="rlhf", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return JSONResponse(error.content, error.status)

    async def complete(request: Request, is_chat: bool) -> Response:
        endpoint.check_key(request.headers.get("authorization"))
        try:
            body = await request.json()
        except ValueError as error:
            raise Refused(400, "the body is no JSON") from error
        reply = await run_in_threadpool(endpoint.reply, body, is_chat)
        if body.get("stream"):
            return StreamingResponse(reply.events(), media_type="text/event-stream")
        return JSONResponse(await run_in_threadpool(reply.whole))

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        endpoint.check_key(request.headers.get("authorization"))
        return JSONResponse(endpoint.list_models())

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await complete(request, True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await complete(request, False)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    return app
