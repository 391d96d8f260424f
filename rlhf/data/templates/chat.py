"""The chat template: a conversation in the format of the tokenizer's own Jinja template, and its token that ends a turn."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message, Prompt
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates.base import ShortPrompt, Template
from rlhf.data.templates.encoder import Part, join_parts
from rlhf.data.templates.jinja import (
    encode_by_transformers,
    find_end_ids,
    find_marks,
    has_generation_marks,
    mark_text,
    render_messages,
)

# What stands for the text of a message, with its number.
MARK = re.compile(mark_text("([0-9]+)"))
# A conversation that every template has a text for.
QUESTION, ANSWER = Message("user", "Why?"), Message("assistant", "Because.")


# The roles of a conversation, and whether a generation prompt follows.
Roles = tuple[tuple[str, ...], bool]


@dataclass(frozen=True)
class Skeleton:
    """The text of a template around messages of given roles: `texts` before, between and after the messages, whose numbers
    are `order`."""

    texts: tuple[str, ...]
    order: tuple[int, ...]


class ChatTemplate(Template):
    """The Jinja template that the tokenizer has.

    Nothing is stripped from a message or added to it but what the template itself strips and adds. A prompt is the
    template's text of the messages, with its generation prompt; the response is what the template's text of the whole
    conversation has after it, up to the token that ends the turn.

    Raises:
        ConfigError: The template does not have a text for a question and an answer from which training and rollouts can
            be made.
    """

    def __init__(self, data: Data, tokenizer: Tokenizer) -> None:
        self.ends = find_end_ids(tokenizer)
        self.end = str(tokenizer.convert_ids_to_tokens(self.ends[0]))
        super().__init__(data, tokenizer, self.end)
        self.marks_answers, self.skeletons = has_generation_marks(tokenizer), dict[Roles, Skeleton | None]()
        try:
            whole = self.read((QUESTION,))
            answer = self.answer_parts((QUESTION,), ANSWER.content)
        except Dropped as reason:
            fix = "correct the template, or set data.template=plain"
            raise ConfigError("data.template", data.template, f"it has no text for an answer: {reason}", fix) from reason
        where = [number for number, part in enumerate(answer) if part.written]
        self.lead, self.tail = join_parts(answer[: where[0]]), join_parts(answer[where[0] + 1 :]).removesuffix(self.end)
        ids = whole.ids + self.whole_answer(whole, ANSWER.content)
        theirs = encode_by_transformers(tokenizer, (QUESTION, ANSWER))
        if ids != theirs[: len(ids)]:
            problem = "its text around an answer is not cut into the tokens that transformers cuts it into"
            raise ConfigError("data.template", data.template, problem, "set data.template=plain")

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The token that ends a turn, and end-of-text."""
        return self.ends

    def prompt_parts(self, prompt: Prompt) -> list[Part]:
        """Return the template's text of a prompt, with its generation prompt."""
        messages = as_messages(prompt)
        text = render_messages(self.tokenizer, messages, generation_prompt=True)
        written = self.locate(text, messages, generation_prompt=True)
        said = self.find_answers(text, messages, written)
        return cut_parts(text, written or [], said)

    def answer_parts(self, prompt: Prompt, response: str) -> list[Part]:
        """Return what the template's text of a conversation has after its prompt, up to the end of the turn."""
        asked = as_messages(prompt)
        messages = (*asked, Message("assistant", response))
        before = render_messages(self.tokenizer, asked, generation_prompt=True)
        text = render_messages(self.tokenizer, messages)
        if not text.startswith(before):
            raise Dropped("conversations whose text in the chat template does not begin with the text of their prompt")
        written = self.locate(text, messages)
        end = self.find_end(text, len(before) if written is None else written[-1][1])
        own = [] if written is None else [(start - len(before), stop - len(before)) for start, stop in written[-1:]]
        if own and own[0][0] < 0:
            raise Dropped("conversations whose answer stands in the generation prompt of the chat template")
        return cut_parts(text[len(before) : end], own, [(0, end - len(before))])

    def find_end(self, text: str, start: int) -> int:
        """Return where the turn ends in a text whose answer ends at `start`: after the token that ends a turn. Raises
        Dropped where no such token follows."""
        place = text.find(self.end, start)
        if place < 0:
            raise Dropped("conversations without a token that ends the answer in the chat template")
        return place + len(self.end)

    def locate(
        self, text: str, messages: tuple[Message, ...], generation_prompt: bool = False
    ) -> list[tuple[int, int]] | None:
        """Return where each message stands in the template's text, in the order of the text.

        None where the template changes a message, unless by stripping its ends. Then special tokens that are written out in
        a message would be taken for the template's own, and the conversation is dropped if there are any.
        """
        roles = tuple(message.role for message in messages), generation_prompt
        if roles not in self.skeletons:
            self.skeletons[roles] = find_skeleton(self.tokenizer, *roles)
        skeleton = self.skeletons[roles]
        found = None if skeleton is None else match_skeleton(text, skeleton, [message.content for message in messages])
        if found is None and any(self.encoder.holds_special(message.content) for message in messages):
            raise Dropped("conversations that hold the text of a special token, which the chat template may change")
        return found

    def find_answers(
        self, text: str, messages: tuple[Message, ...], written: list[tuple[int, int]] | None
    ) -> list[tuple[int, int]]:
        """Return where the assistant speaks in the text of a prompt: as `{% generation %}` in the template marks it, or
        from where its generation prompt ends to the end of the turn.

        Empty where it cannot be told: the text does not begin with the text of an earlier prompt, or a message does not
        stand in it as it is.
        """
        answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            return []
        if self.marks_answers:
            return find_marks(self.tokenizer, messages)
        spans: list[tuple[int, int]] = []
        for place in answers:
            before = render_messages(self.tokenizer, messages[:place], generation_prompt=True)
            stop = [stop for start, stop in written or [] if start >= len(before)]
            if not text.startswith(before) or not stop:
                return []
            spans.append((len(before), self.find_end(text, stop[0])))
        return spans

    def read_text(self, text: str) -> ShortPrompt:
        """Raise Dropped: the text of a prompt does not say what its messages are."""
        raise Dropped("prompts of which the text alone is known, which the chat template needs the messages of")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response's token ids, exactly, without what the template puts around it."""
        kept = [token for token in ids if token not in self.end_ids]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return text.removeprefix(self.lead).removesuffix(self.tail)


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Return a prompt as a conversation."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def cut_parts(text: str, written: Sequence[tuple[int, int]], said: Sequence[tuple[int, int]]) -> list[Part]:
    """Cut a text at the ends of the spans of messages and of the assistant's turns."""
    borders = sorted({0, len(text), *(place for span in (*written, *said) for place in span)})

    def within(start: int, spans: Sequence[tuple[int, int]]) -> bool:
        return any(first <= start < last for first, last in spans)

    return [Part(text[start:stop], within(start, written), within(start, said)) for start, stop in pairwise(borders)]


def find_skeleton(tokenizer: Tokenizer, roles: tuple[str, ...], generation_prompt: bool) -> Skeleton | None:
    """Return the template's text around messages of these roles; None where it depends on what they say. Raises Dropped
    where the template leaves a message out."""
    messages = tuple(Message(role, mark_text(number)) for number, role in enumerate(roles))
    pieces = MARK.split(render_messages(tokenizer, messages, generation_prompt))
    order = tuple(map(int, pieces[1::2]))
    if set(order) != set(range(len(roles))):
        raise Dropped("conversations of which the chat template leaves a message out")
    return Skeleton(tuple(pieces[::2]), order) if len(order) == len(roles) else None


def match_skeleton(text: str, skeleton: Skeleton, contents: list[str]) -> list[tuple[int, int]] | None:
    """Return where the messages stand in a text; None where it is not their text."""
    if not text.startswith(skeleton.texts[0]):
        return None
    place, spans = len(skeleton.texts[0]), []
    for number, after in zip(skeleton.order, skeleton.texts[1:], strict=True):
        whole = contents[number]
        forms = dict.fromkeys((whole, whole.strip(), whole.rstrip(), whole.lstrip()))
        found = next((form for form in forms if text.startswith(form + after, place)), None)
        if found is None:
            return None
        spans.append((place, place + len(found)))
        place += len(found) + len(after)
    return spans if place == len(text) else None
