"""The plain template: how a prompt and a response become text.

The text that a model reads is `data.prompt_format` around the prompt, and then the response. All text that is trained on or
sampled from goes through the functions of this file.
"""

from collections.abc import Sequence

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message


def render_prompt(prompt: str, data: Data) -> str:
    """Return the text that the model reads before it responds."""
    return data.prompt_format.format(prompt=prompt)


def render_response(response: str, data: Data) -> str:
    """Return the text of a response as it follows the prompt: after a leading space, without blanks at its ends; with
    `data.format=deepspeed-chat` exactly as the record has it."""
    return response if data.format == "deepspeed-chat" else " " + response.strip()


def prompt_text(prompt: str | Sequence[Message], data: Data) -> str:
    """Return a record's prompt as the one text that `data.prompt_format` is put around. Raises as `join_messages` does."""
    return prompt if isinstance(prompt, str) else join_messages(prompt, data)


def join_messages(messages: Sequence[Message], data: Data) -> str:
    """Return a conversation as one text, such that `data.prompt_format` around it gives each turn of the user in that
    format and each turn of the assistant as a response.

    With the format "Human: {prompt}\\n\\nAssistant:" the conversation "Hi", "Hello.", "Who are you?" is read as

        Human: Hi\\n\\nAssistant: Hello.\\n\\nHuman: Who are you?\\n\\nAssistant:

    A blank line stands before each further turn, unless the format itself begins with a blank. A system message is the
    beginning of the first turn, before a blank line, as in the chat templates of Gemma and Llama 2.

    Raises:
        ConfigError: The format does not say who speaks.
        Dropped: User and assistant do not take turns, or the user does not have the last one.
    """
    before, after = split_format(data)
    system = [message.content for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    if len(system) > 1 or (system and messages[0].role != "system"):
        raise Dropped("conversations with a system message after their start")
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(turns)):
        raise Dropped("conversations in which user and assistant do not take turns")
    if len(turns) % 2 == 0:
        raise Dropped("conversations without a question before the answer")
    gap = "" if before[:1].isspace() else "\n\n"
    text = "\n\n".join([*system, turns[0].content])
    for answer, question in zip(turns[1::2], turns[2::2], strict=True):
        text += after + render_response(answer.content, data) + gap + before + question.content
    return text


def split_format(data: Data) -> tuple[str, str]:
    """Return what stands before and after the prompt in `data.prompt_format`. Raises ConfigError where the turns of a
    conversation could not be told apart, or would not be the texts of a published data set."""
    if data.format != "plain":
        fix = "set data.format=plain"
        raise ConfigError("data.format", data.format, "the records are conversations, which it has no text for", fix)
    before, *rest = data.prompt_format.format(prompt="\0").split("\0")
    if len(rest) != 1 or not (before + rest[0]).strip():
        problem = "the records are conversations, and it does not say who speaks in a turn"
        fix = "give a format that does, as data.prompt_format=\"' Human: {prompt} Assistant:'\""
        raise ConfigError("data.prompt_format", data.prompt_format, problem, fix)
    return before, rest[0]
