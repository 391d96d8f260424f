"""Which prompts an evaluation asks where these are not held-out ones: DeepSpeed-Chat's, or those of a file. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.data.dataset import Message
from rlhf.data.dataset import Prompt as DataPrompt
from rlhf.experiment.files import parse_json

KEY = "evaluate.prompts"
# The subjects of DeepSpeed-Chat's prompt_eval.py in this project's words, by language.
DEEPSPEED_CHAT = {
    "English": (
        "Describe the company Microsoft in a few sentences.",
        "Tell a child of six years, in a few sentences, how people landed on the moon.",
        "Write a short poem about a frog that is wise.",
        "Who was the president of the United States in the year 1955?",
        "How does a telescope work?",
        "Why do birds fly south before the winter?",
    ),
    "Chinese": (
        "请用几句话介绍微软公司。",
        "请用几句话向一个六岁的孩子讲讲人类是怎样登上月球的。",
        "请写一首关于一只聪明青蛙的短诗。",
        "1955年的美国总统是谁？",
        "望远镜是怎样工作的？",
        "鸟儿为什么要在冬天之前飞往南方？",
    ),
    "Japanese": (
        "マイクロソフトという会社について、数文で紹介してください。",
        "人類が月に着陸したことを、六歳の子どもに数文で説明してください。",
        "賢いカエルについての短い詩を書いてください。",
        "1955年のアメリカ合衆国の大統領は誰でしたか。",
        "望遠鏡はどのような仕組みで見えるのですか。",
        "鳥はなぜ冬の前に南へ渡るのですか。",
    ),
}

# The codes of its languages, as HTML has them.
LANGUAGES = {"English": "en", "Chinese": "zh", "Japanese": "ja"}


@dataclass(frozen=True)
class Asked:
    """A prompt with what else is known of it, as a reference answer for rewards."""

    prompt: DataPrompt
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(named: str) -> list[Asked]:
    """Return the prompts of `evaluate.prompts`, where those are not the held-out ones of the data. Raises ConfigError for a
    file that cannot be read."""
    if named == "deepspeed-chat":
        return [Asked(text, {"language": name}) for name, texts in DEEPSPEED_CHAT.items() for text in texts]
    path = Path(named).expanduser()
    if not path.is_file():
        fix = "write heldout, deepspeed-chat, or the path of a .jsonl file whose lines have a `prompt`"
        raise ConfigError(KEY, named, "there is no such file", fix)
    found = list(read_file(named, path))
    if not found:
        raise ConfigError(KEY, named, "it holds no prompt", 'write lines as {"prompt": "..."} in it')
    return found


def read_file(named: str, path: Path) -> Iterator[Asked]:
    """Yield the prompts of a file of JSON lines; keys beside `prompt` are what else is known of one."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            prompt = record.pop("prompt")
            if not isinstance(prompt, str):
                prompt = tuple(Message(str(message["role"]), str(message["content"])) for message in prompt)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = 'write {"prompt": "a text"}, or a list of {"role": ..., "content": ...}'
            raise ConfigError(KEY, named, f"line {number} holds no prompt ({error})", fix) from error
        yield Asked(prompt, record)
