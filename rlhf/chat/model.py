"""A policy that is loaded to be talked to: from a conversation to an answer, token by token."""

import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rlhf.chat.stream import TextStream
from rlhf.config.schema import Config, Rollout
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message
from rlhf.data.templates import ShortPrompt, build_saved_template
from rlhf.data.templates.base import find_longest
from rlhf.data.templates.chat import ChatTemplate
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.policies import Policy
from rlhf.models.families import last_position
from rlhf.models.load import load_policy
from rlhf.models.preflight import check_source
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.rollout.sampling import StopTexts, end_tokens, next_tokens, seen_tokens
from rlhf.runtime.seeds import uniforms

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Draw:
    """Which random numbers an answer is sampled with: those of a seed, of a turn of the conversation, and, where a question
    is answered more than once, of one of these answers."""

    seed: int
    turn: int = 0
    sample: int = 0


@dataclass
class Answer:
    """An answer that is written while its text is iterated over, in pieces.

    Attributes:
        tokens: Its token ids so far, with the one that ends it.
        ended: Whether it came to its end, and was not cut or stopped.
        prompt_tokens: The tokens that the model has read.
        dropped: How many of the oldest turns the model has not read, since its positions do not suffice.
        limit: The most tokens that the answer may have.
    """

    stream: TextStream
    written: Iterator[tuple[int, bool]]
    prompt_tokens: int
    limit: int
    dropped: int = 0
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def __iter__(self) -> Iterator[str]:
        try:
            for token, has_ended in self.written:
                self.ended = has_ended
                self.tokens.append(token)
                if piece := self.stream.push(token):
                    yield piece
        finally:  # also when whoever reads stops
            rest = self.stream.finish()
        if rest:
            yield rest

    @property
    def text(self) -> str:
        """The text so far."""
        return self.stream.shown

    def finish(self) -> "Answer":
        """Write the answer to its end."""
        for _ in self:
            pass
        return self


class TooLong(Exception):
    """A question that leaves no room for an answer."""


class ChatModel:
    """Answers conversations by a model, one at a time.

    Args:
        policy: The model.
        config: Device, number format, and the format of prompts of a model whose tokenizer has no template.
    """

    def __init__(self, policy: Policy, config: Config) -> None:
        self.policy, self.device = policy, torch.device(config.hardware.device)
        self.lock = threading.Lock()  # a tokenizer serves one thread at a time
        source = find_source(policy, config)
        fits = without_lengths(config)
        check_source(source, fits, scorer=False)
        tokenizer = load_tokenizer(source.path, source.key, source.revision, source.trust_remote_code, source.gguf_file)
        self.fingerprint = str(content_id(policy.path if policy.stage is None else str(policy.stage.path), source.key))
        self.tokenizer, self.template = tokenizer, build_saved_template(config.data, tokenizer)
        model: Any = load_policy(source, fits, replace(config.zero, stage=0), 0.0)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.positions = last_position(model.config)
        self.ends = end_tokens(tokenizer, self.device)
        takes = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in takes else "past_key_values"  # since transformers 5.24; before it
        self.shorter = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def has_own_template(self) -> bool:
        """Whether the model's tokenizer says how it reads a conversation, whatever the configuration's format is."""
        return isinstance(self.template, ChatTemplate)

    def answer(self, messages: Messages, rollout: Rollout, draw: Draw) -> Answer:
        """Begin an answer to a conversation. Where its oldest turns leave no room for `rollout.max_new_tokens`, the model
        does not read them, and the answer says so.

        Raises:
            TooLong: The last question alone leaves no room.
            Dropped: The template has no text for such a conversation.
        """
        with self.lock:
            found, dropped = self.fit(messages, rollout.max_new_tokens)
        return replace(self.begin(found.ids, rollout, draw, self.stream()), dropped=dropped)

    def answer_whole(self, messages: Messages, rollout: Rollout, draw: Draw) -> Answer:
        """Begin an answer to a conversation of which the model reads every turn, with as many tokens as there is room for.
        Raises as `answer` does."""
        with self.lock:
            found = self.template.read(messages)
        return self.begin(found.ids, rollout, draw, self.stream())

    def stream(self) -> TextStream:
        """Return the text of an answer by the model's template."""
        return TextStream(self.decode, self.template.lead, self.template.tail)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's tokens, while other threads may use the tokenizer too."""
        with self.lock:
            return self.template.decode(tokens)

    def complete(self, text: str, rollout: Rollout, draw: Draw) -> Answer:
        """Begin what follows a text, which is read as it is. Raises TooLong where it leaves no room."""
        with self.lock:
            ids = self.template.encoder.read_text(text).ids
        return self.begin(ids, rollout, draw, TextStream(self.decode_text))

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        with self.lock:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def begin(self, ids: list[int], rollout: Rollout, draw: Draw, stream: TextStream) -> Answer:
        """Begin an answer to token ids."""
        limit = min(rollout.max_new_tokens, self.positions - len(ids))
        if limit < 1:
            raise TooLong(f"it has {len(ids)} tokens, and the model reads {self.positions}")
        return Answer(stream, self.write(ids, rollout, draw, limit), len(ids), limit)

    def fit(self, messages: Messages, new_tokens: int) -> tuple[ShortPrompt, int]:
        """Return a conversation as the model reads it, with as many of its last turns as leave room for so many new tokens,
        and how many turns that leaves out. The last question is read whole in any case."""
        system = tuple(message for message in messages if message.role == "system")
        turns = [place for place, message in enumerate(messages) if message.role == "user"] or [0]

        def read(kept: int) -> ShortPrompt | None:
            last = (*system, *(message for message in messages[turns[-kept] :] if message.role != "system"))
            found = self.template.read(messages if kept == len(turns) else last)
            return found if kept == 1 or len(found.ids) + new_tokens <= self.positions else None

        found = find_longest(len(turns), read)
        assert found is not None  # the last question is read in any case
        kept = sum(not isinstance(message, str) and message.role == "user" for message in found.prompt)
        return found, len(turns) - max(1, kept)

    @torch.no_grad()
    def write(self, ids: list[int], rollout: Rollout, draw: Draw, limit: int) -> Iterator[tuple[int, bool]]:
        """Yield the tokens of an answer, each with whether it ends the answer. One uniform number a token, drawn from the
        seed, decides; so neither who else is answered nor how the text is shown changes it."""
        device = self.device
        numbers = torch.from_numpy(uniforms(draw.seed, "chat", draw.turn, [draw.sample], limit)).to(device)  # [1, R]
        stops = StopTexts(rollout.stop, self.tokenizer, device) if rollout.stop else None
        tokens, read = torch.zeros(1, limit, dtype=torch.long, device=device), torch.tensor([ids], device=device)
        cache, seen = None, None
        for step in range(limit):
            found = self.model(input_ids=read, use_cache=True, **{self.cache_name: cache}, **self.shorter)
            logits, cache = found.logits[:, -1], getattr(found, self.cache_name)
            if rollout.repetition_penalty != 1.0 and seen is None:
                seen = seen_tokens(read, torch.ones_like(read), logits.size(1))
            forbid = step < rollout.min_new_tokens
            chosen, _ = next_tokens(logits, numbers[:, step], rollout, self.ends if forbid else None, seen)
            if seen is not None:
                seen.scatter_(1, chosen[:, None], True)
            tokens[:, step], read = chosen, chosen[:, None]
            has_ended = bool((chosen == self.ends).any())
            if stops is not None and not forbid:
                has_ended |= bool(stops(tokens, torch.tensor([step], device=device)).any())
            yield int(chosen), has_ended
            if has_ended:
                return


def without_lengths(config: Config) -> Config:
    """Return a configuration whose sequences fit every model: how long they may be is seen when they are read."""
    data = replace(config.data, max_prompt_tokens=1, max_response_tokens=1)
    return replace(config, data=data, rollout=replace(config.rollout, max_new_tokens=1))


def find_source(policy: Policy, config: Config) -> Source:
    """Return where a policy's weights are; a path to a .gguf file names the file in its directory."""
    path, model = Path(policy.path).expanduser(), config.model
    if path.suffix == ".gguf" and path.is_file():
        return Source(str(path.parent), "chat", None, False, path.name)
    if policy.stage is not None:
        return Source(policy.path, "chat", None, model.trust_remote_code)
    return Source(policy.path, "chat", model.revision, model.trust_remote_code, model.gguf_file)


def describe_unreadable(error: Dropped | TooLong) -> str:
    """Say why a conversation cannot be answered."""
    if isinstance(error, TooLong):
        return f"the question leaves no room for an answer: {error}"
    return f"the model's template has no text for {error}"
