"""A reward model behind HTTP, which several runs share: what rlhf/rewards/http.py asks."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from rlhf.config.schema import Config
from rlhf.data.dataset import Message, Prompt
from rlhf.data.encoded import Encoded
from rlhf.data.templates import build_saved_template
from rlhf.data.tokens import right_mask, sequence_batch
from rlhf.models.families import last_position
from rlhf.models.forward import micro_batches, response_scores
from rlhf.models.load import load_scorer
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer

Score = Callable[[Mapping[str, Any]], list[float | None]]


class ModelScorer:
    """Scores texts by a reward model that is loaded once.

    Args:
        source: Where the model is.
        config: Precision, device and template.
        batch_size: The most sequences of a forward pass.
    """

    def __init__(self, source: Source, config: Config, batch_size: int) -> None:
        self.device, self.batch_size = torch.device(config.hardware.device), batch_size
        tokenizer = load_tokenizer(source.path, source.key, None, source.trust_remote_code)
        self.template = build_saved_template(config.data, tokenizer)
        model = load_scorer(source, config, config.reward_zero, 0.0)
        self.model: Any = model.requires_grad_(False).eval().to(self.device)

    @torch.no_grad()
    def __call__(self, request: Mapping[str, Any]) -> list[float | None]:
        """Return the score of each prompt with its response. Raises ValueError for what is no such request."""
        items = self.encode(request)
        scores: list[float | None] = [None] * len(items)
        order = sorted(range(len(items)), key=lambda number: -items[number].length)
        for part in micro_batches(order, self.batch_size, "length", self.model) if order else []:
            batch = sequence_batch([items[n] for n in part], self.template.tokenizer.pad_token_id, self.device)
            found = response_scores(self.model, batch.ids, right_mask(batch.lengths, batch.ids.size(1)), "none")
            for number, score in zip(part, found.tolist(), strict=True):
                scores[number] = score
        return scores

    def encode(self, request: Mapping[str, Any]) -> list[Encoded]:
        """Encode prompts and responses as the model was trained on them; where its positions do not suffice, they lose
        their beginning, the prompt first."""
        prompts, responses = request["prompts"], request["responses"]
        ended = request.get("ended") or [True] * len(responses)
        limit, items = last_position(self.model.config), []
        for prompt, response, done in zip(prompts, responses, ended, strict=True):
            short = self.template.read(to_prompt(prompt))
            answer = self.template.whole_answer(short, str(response), bool(done))[-limit:]
            room = limit - len(answer)
            kept = short.ids if room >= len(short.ids) else self.template.encoder.last_tokens(short.ids, room)
            items.append(Encoded(kept, answer))
        return items


def to_prompt(prompt: Any) -> Prompt:
    """Return a prompt as templates take it: a text, or a conversation of {"role", "content"}."""
    return prompt if isinstance(prompt, str) else tuple(Message(m["role"], m["content"]) for m in prompt)


def build_server(score: Score, about: Mapping[str, Any], address: tuple[str, int]) -> ThreadingHTTPServer:
    """Return a server that answers POST by scores, one request at a time, and GET by what it is."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        """Answers a request."""

        def do_GET(self) -> None:
            """Say which model this is."""
            self.reply(200, about)

        def do_POST(self) -> None:
            """Score a batch."""
            try:
                request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                with lock:
                    self.reply(200, {"scores": score(request)})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self.reply(400, {"error": f"{type(error).__name__}: {error}"})
            except RuntimeError as error:  # as of a device without memory
                self.reply(500, {"error": str(error)})

        def reply(self, code: int, content: Mapping[str, Any]) -> None:
            """Send JSON."""
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing of each request."""

    return ThreadingHTTPServer(address, Handler)
