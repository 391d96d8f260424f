"""What all templates share: parts of text, prompts that are shortened, answers that are cut."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message, Prompt
from rlhf.data.encoded import Encoded, Tokenizer
from rlhf.data.templates.encoder import Context, Part, TextEncoder, join_parts


@dataclass(frozen=True)
class ShortPrompt:
    """A prompt that fits data.max_prompt_tokens.

    Attributes:
        prompt: What is left of the prompt.
        ids: Its token ids, up to where the response begins.
        said: 1 for each token that the assistant said in an earlier turn, else 0; None where there is none, or where it is
            not known which.
        context: What the response follows.
    """

    prompt: Prompt
    ids: list[int]
    said: list[int] | None
    context: Context


class Template(ABC):
    """How prompts and responses become text and token ids.

    The text of a prompt ends where the response begins, so that a rollout goes on from the same ids as a response that is
    trained on. The response ends with the token that ends a turn, unless it is cut.

    Attributes:
        lead: The text that `decode` takes off the beginning of a response.
        tail: The text that it takes off the end, before the token that ends the turn.
    """

    lead: str = ""
    tail: str = ""

    def __init__(self, data: Data, tokenizer: Tokenizer, end: str = "") -> None:
        self.data, self.tokenizer, self.encoder = data, tokenizer, TextEncoder(tokenizer, end)

    @abstractmethod
    def prompt_parts(self, prompt: Prompt) -> list[Part]:
        """Return the text of a prompt, up to where the response begins. Raises Dropped for a prompt without one."""

    @abstractmethod
    def answer_parts(self, prompt: Prompt, response: str) -> list[Part]:
        """Return the text of a response to a prompt, with what ends the turn."""

    @property
    @abstractmethod
    def end_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a response, of which the first is the one that is trained on."""

    @property
    def prefix(self) -> list[int]:
        """The ids that stand before the first text."""
        return []

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response's token ids, without the tokens that end it."""

    def render_prompt(self, prompt: Prompt) -> str:
        """Return the text that the model reads before it responds."""
        return join_parts(self.prompt_parts(prompt))

    def render(self, prompt: Prompt, response: str) -> str:
        """Return the whole text of a prompt and a response."""
        return self.render_prompt(prompt) + join_parts(self.answer_parts(prompt, response))

    def check_turns(self) -> None:
        """Raise ConfigError where it cannot be told what the assistant says in the earlier turns of a conversation."""
        talk = (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?"))
        try:
            found = self.read(talk).said
        except Dropped as reason:
            problem = f"the template has no text for a conversation: {reason}"
        else:
            problem = "" if found else "the chat template does not show what the assistant says in earlier turns"
        if problem:
            fix = "set sft.loss_on=completion, or give a template that marks it by {% generation %}"
            raise ConfigError("sft.loss_on", "assistant", problem, fix)

    def show(self, prompt: Prompt) -> str:
        """Return a prompt as people read it: its own text, or a conversation as the model reads it."""
        return prompt if isinstance(prompt, str) else self.render_prompt(prompt)

    def encode_prompt(self, prompt: Prompt) -> list[int] | None:
        """Return a prompt's ids, shortened to data.max_prompt_tokens; None where data.truncation leaves it out."""
        short = self.shorten(prompt)
        return None if short is None else short.ids

    def encode_answer(self, short: ShortPrompt, response: str) -> Encoded:
        """Return a prompt's ids with those of a response to it. A response that is longer than data.max_response_tokens is
        cut there, and has no end: what learns from it must not learn to stop in the middle of a sentence."""
        ids, limit = self.whole_answer(short, response), self.data.max_response_tokens
        loss = None if short.said is None else short.said + [1] * min(limit, len(ids))
        return Encoded(short.ids, ids[:limit], cut=len(ids) > limit, loss=loss)

    def whole_answer(self, short: ShortPrompt, response: str, ended: bool = True) -> list[int]:
        """Return the ids of a response to a prompt, however long it is; without what ends it unless it has `ended`."""
        ids = self.encoder.encode(self.answer_parts(short.prompt, response), short.context).ids
        return ids if ended else ids[:-1]

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text that is no conversation, with the end-of-text token."""
        return [*self.encoder.read_text(text).ids, self.tokenizer.eos_token_id]

    def encode_whole(self, prompt: Prompt, response: str) -> list[int]:
        """Return the ids of a prompt and a response, neither shortened nor cut."""
        whole = self.read(prompt)
        return whole.ids + self.whole_answer(whole, response)

    def read(self, prompt: Prompt) -> ShortPrompt:
        """Return a prompt as it is, with its ids."""
        found = self.encoder.encode(self.prompt_parts(prompt))
        said = [0] * len(self.prefix) + found.said if any(found.said) else None
        return ShortPrompt(prompt, self.prefix + found.ids, said, found.context)

    def read_text(self, text: str) -> ShortPrompt:
        """Return the text of a prompt, as some template has made it, with its ids. Raises Dropped where the text of a
        response depends on more than that."""
        found = self.encoder.read_text(text)
        return ShortPrompt("", found.ids, None, found.context)

    def shorten(self, prompt: Prompt) -> ShortPrompt | None:
        """Return a prompt with its ids, shortened to data.max_prompt_tokens: a conversation loses whole turns from its
        start, then its last question what data.truncation says; None where it does not fit."""
        whole = self.read(prompt)
        if len(whole.ids) <= self.data.max_prompt_tokens:
            return whole
        if self.data.truncation == "drop":
            return None
        if isinstance(prompt, str):
            return self.shorten_text(prompt)
        system = tuple(message for message in prompt if message.role == "system")
        turns = [place for place, message in enumerate(prompt) if message.role == "user"]
        found = find_longest(len(turns) - 1, lambda kept: self.fit((*system, *prompt[turns[-kept] :])))
        return self.shorten_question(system, prompt[-1]) if found is None else found

    def shorten_question(self, system: tuple[Message, ...], question: Message) -> ShortPrompt | None:
        """Return a question that is too long as data.truncation shortens it, after the system message; None where it does
        not fit."""
        parts, glue = split_text(question.content, self.data.truncation)

        def fit(kept: int) -> ShortPrompt | None:
            return self.fit((*system, Message(question.role, glue.join(parts[len(parts) - kept :]))))

        return find_longest(len(parts) - 1, fit)

    def shorten_text(self, prompt: str) -> ShortPrompt | None:
        """Return a prompt that is one text, and too long, as data.truncation shortens it; None where it does not fit."""
        parts, glue = split_text(prompt, self.data.truncation)
        return find_longest(len(parts) - 1, lambda kept: self.fit(glue.join(parts[len(parts) - kept :])))

    def fit(self, prompt: Prompt) -> ShortPrompt | None:
        """Return a prompt with its ids, or None where they are too many."""
        found = self.read(prompt)
        return found if len(found.ids) <= self.data.max_prompt_tokens else None


def split_text(text: str, truncation: str) -> tuple[list[str], str]:
    """Return what a text loses from its start, and what joins it: paragraphs or characters."""
    return (text.split("\n"), "\n") if truncation == "paragraphs" else (list(text), "")


def find_longest(most: int, fit: Callable[[int], ShortPrompt | None]) -> ShortPrompt | None:
    """Return what fits of the largest number of parts, from 1 to `most`; None where one does not.

    Doubles the number of parts until they do not fit, then bisects. So no text is encoded that is much longer than what
    fits, and the time does not grow with the number of parts that are dropped.
    """
    fits, count, found = 0, 1, None
    while count <= most and (longer := fit(count)) is not None:
        fits, found, count = count, longer, 2 * count
    too_many = min(count, most + 1)
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        if (longer := fit(count)) is not None:
            fits, found = count, longer
        else:
            too_many = count
    return found
