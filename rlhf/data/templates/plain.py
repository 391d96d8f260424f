"""The plain template: a format around the prompt, and the response after it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message, Prompt
from rlhf.data.templates.base import ShortPrompt, Template
from rlhf.data.templates.encoder import Part, join_parts
from rlhf.data.templates.jinja import quote
from rlhf.experiment.templates import PLAIN

# The plain template in Jinja, with names in capitals where a format's texts stand.
WRITTEN = (
    PLAIN
    + """{%- set turn = namespace(system='', asked=false) -%}
{{- PREFIX -}}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- set turn.system = message.content + '\\n\\n' -%}
{%- elif message.role == 'user' and not turn.asked -%}
{{- (GAP if turn.started else '') + BEFORE + turn.system + message.content + AFTER -}}
{%- set turn.system = '' -%}{%- set turn.asked = true -%}{%- set turn.started = true -%}
{%- elif message.role == 'assistant' and turn.asked -%}
{{- RESPONSE -}}{%- set turn.asked = false -%}
{%- else -%}
{{- raise_exception('user and assistant must take turns, after a system message or none') -}}
{%- endif -%}
{%- endfor -%}
{%- if not turn.asked -%}{{- eos_token -}}{%- endif -%}"""
)


class PlainTemplate(Template):
    """`data.prompt_format` around each prompt, then the response in `data.response_format`, then end-of-text.

    A conversation is such prompts and responses in turn. With the format "Human: {prompt}\\n\\nAssistant:" the
    conversation "Hi", "Hello.", "Who are you?" is read as

        Human: Hi\\n\\nAssistant: Hello.\\n\\nHuman: Who are you?\\n\\nAssistant:

    A blank line stands before each further turn, unless the format itself begins with a blank. A system message is the
    beginning of the first turn, before a blank line, as in the chat templates of Gemma and Llama 2.
    """

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The end-of-text token."""
        return (int(self.tokenizer.eos_token_id),)

    @property
    def prefix(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text, as Llama's and Gemma's beginning-of-text; none where
        the format itself begins with them."""
        return [] if self.prefix_text and self.data.prompt_format.startswith(self.prefix_text) else self.encoder.prefix

    @property
    def prefix_text(self) -> str:
        """The text of the special tokens that the tokenizer puts before a text."""
        return "".join(self.tokenizer.convert_ids_to_tokens(self.encoder.prefix))

    def write_chat_template(self) -> str:
        """Return the Jinja template that gives the text of this one, for a tokenizer that is saved."""
        (before, after), (lead, tail) = split_format(self.data.prompt_format), split_format(self.data.response_format)
        # Some tokenizers begin a text with a blank, but not the text after a special token.
        blank = " " if self.prefix and self.encoder.adds_blank and not self.encoder.adds_blank_again else ""
        values = {
            "PREFIX": self.prefix_text + blank if self.prefix else "", "BEFORE": before, "AFTER": after,
            "GAP": "" if before[:1].isspace() else "\n\n",
        }  # fmt: skip
        text = WRITTEN
        for name, value in values.items():
            text = text.replace(name, quote(value))
        response = f"{quote(lead)} + (message.content | trim) + {quote(tail)}"
        if self.data.format == "deepspeed-chat":
            response = "message.content"
        return text.replace("RESPONSE", response)

    def prompt_parts(self, prompt: Prompt) -> list[Part]:
        """Return the text of a prompt. Raises as `check_prompt` does."""
        return prompt_parts(prompt, self.data)

    def answer_parts(self, prompt: Prompt, response: str) -> list[Part]:
        """Return the text of a response, and end-of-text."""
        end = Part(str(self.tokenizer.eos_token), said=True)
        return [*response_parts(response, self.data), end]

    def shorten_text(self, prompt: str) -> ShortPrompt | None:
        """Return a prompt without its first paragraphs, or without the first tokens of its whole text."""
        if self.data.truncation != "left":
            return super().shorten_text(prompt)
        whole = self.read(prompt)
        return replace(whole, ids=self.encoder.last_tokens(whole.ids, self.data.max_prompt_tokens))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response's token ids, without blanks at its ends."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def render_prompt(prompt: Prompt, data: Data) -> str:
    """Return the text of a prompt."""
    return join_parts(prompt_parts(prompt, data))


def render_response(response: str, data: Data) -> str:
    """Return the text of a response as it follows the prompt."""
    return join_parts(response_parts(response, data))


def response_parts(response: str, data: Data) -> list[Part]:
    """Return the text of a response as it follows the prompt: in `data.response_format`, without blanks at its ends; with
    `data.format=deepspeed-chat` exactly as the record has it."""
    if data.format == "deepspeed-chat":
        return [Part(response, written=True, said=True)]
    before, after = split_format(data.response_format)
    return [Part(before, said=True), Part(response.strip(), written=True, said=True), Part(after, said=True)]


def split_format(form: str) -> tuple[str, str]:
    """Return what a format has before and after its text."""
    before, after = form.format(prompt="\0", response="\0").split("\0")
    return before, after


def prompt_parts(prompt: Prompt, data: Data) -> list[Part]:
    """Return the text of a prompt: the format around each of its turns. Raises as `check_prompt` does."""
    check_prompt(prompt, data)
    before, after = split_format(data.prompt_format)
    if isinstance(prompt, str):
        return [Part(before), Part(prompt, written=True), Part(after)]
    system = [message.content for message in prompt if message.role == "system"]
    turns = [message.content for message in prompt if message.role != "system"]
    parts = [Part(before), Part("\n\n".join([*system, turns[0]]), written=True), Part(after)]
    gap = "" if before[:1].isspace() else "\n\n"
    for answer, question in zip(turns[1::2], turns[2::2], strict=True):
        parts += [*response_parts(answer, data), Part(gap + before), Part(question, written=True), Part(after)]
    return parts


def check_prompt(prompt: Prompt, data: Data) -> None:
    """Refuse a conversation that has no plain text.

    Raises:
        ConfigError: The format does not say who speaks, or the texts would not be those of a published data set.
        Dropped: User and assistant do not take turns, or the user does not have the last one.
    """
    if isinstance(prompt, str):
        return
    if data.format != "plain":
        fix = "set data.format=plain"
        raise ConfigError("data.format", data.format, "the records are conversations, which it has no text for", fix)
    if not data.prompt_format.format(prompt="").strip():
        problem = "the records are conversations, and it does not say who speaks in a turn"
        fix = "give a format that does, as data.prompt_format=\"' Human: {prompt} Assistant:'\""
        raise ConfigError("data.prompt_format", data.prompt_format, problem, fix)
    check_turns(prompt)


def check_turns(prompt: Sequence[Message]) -> None:
    """Raise Dropped for a conversation in which user and assistant do not take turns, after a system message or none."""
    turns = [message.role for message in prompt if message.role != "system"]
    systems = [place for place, message in enumerate(prompt) if message.role == "system"]
    if systems not in ([], [0]):
        raise Dropped("conversations with a system message after their start")
    if set(turns) - {"user", "assistant"} or turns[:1] == ["assistant"] or any(a == b for a, b in pairwise(turns)):
        raise Dropped("conversations in which user and assistant do not take turns")
    if turns[-1:] != ["user"]:
        raise Dropped("conversations without a question before the answer")
