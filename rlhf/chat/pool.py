"""A pool of sampled responses that people rank: from what stages have kept, or from JSON Lines. Imports no torch."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.evaluation.answers import FILE
from rlhf.experiment.files import Unreadable, as_int, as_mapping, as_text, read_lines
from rlhf.experiment.policies import moved_path, read_spec_values
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.runtime.seeds import random_stream

KEY = "--label"
FIX = "name a stage that evaluates or trains a policy, a run that has one, or a .jsonl file with `prompt` and `responses`"
# A prompt: text, or the messages of a conversation.
Prompt = str | list[dict[str, str]]
# Columns of a row that hold a response each.
ANSWERS = ("response", "chosen", "rejected")
# What follows the key of an answer in samples.jsonl in the key of its score.
SCORED = "_score"


@dataclass(frozen=True)
class Response:
    """A response of a pool, and how it came about, as far as that is known."""

    response: str
    model: str | None = None
    fingerprint: str | None = None
    seed: int | None = None
    sample: int | None = None
    ended: bool | None = None


@dataclass(frozen=True)
class Item:
    """A prompt of a pool with the responses that a person is to rank."""

    number: int
    prompt: Prompt
    responses: tuple[Response, ...]

    @property
    def digest(self) -> str:
        """What the item is known by: the same prompt with the same responses, in whatever order."""
        content = [self.prompt, *sorted(found.response for found in self.responses)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The prompt as people read it."""
        said = self.prompt
        return said if isinstance(said, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in said)

    def arrange(self, seed: int, annotator: str) -> list[Response]:
        """Return the responses in the order in which a person sees them."""
        order = random_stream(seed, "order", self.number, zlib.crc32(annotator.encode())).permutation(len(self.responses))
        return [self.responses[place] for place in order]


@dataclass(frozen=True)
class Pool:
    """The items of a pool, and the prompts that have no two different responses."""

    items: list[Item]
    left_out: int


def read_pool(sources: Sequence[str], most: int, seed: int) -> Pool:
    """Return the prompts of some directories and files with `most` different responses to each, or as many as there are:
    drawn at random, of several models equally many. Raises ConfigError where nothing can be ranked."""
    found: dict[str, dict[str, Response]] = {}
    prompts: dict[str, Prompt] = {}
    for source in sources:
        for prompt, response in read_source(Path(source).expanduser()):
            key = json.dumps(prompt)
            prompts[key] = prompt
            found.setdefault(key, {}).setdefault(response.response, response)
    items = []
    for number, (key, known) in enumerate(found.items()):
        if len(known) > 1:
            items.append(Item(number, prompts[key], choose_responses(list(known.values()), most, seed, number)))
    if not items:
        raise ConfigError(KEY, " ".join(sources), "no prompt has two different responses", FIX)
    return Pool(items, len(found) - len(items))


def choose_responses(known: list[Response], most: int, seed: int, number: int) -> tuple[Response, ...]:
    """Return some of a prompt's responses: one of each model, then a second one of each, and so on."""
    drawn = [known[place] for place in random_stream(seed, "pool", number).permutation(len(known))]
    turns: dict[str | None, int] = {}
    ordered = []
    for response in drawn:
        turns[response.model] = turns.get(response.model, -1) + 1
        ordered.append((turns[response.model], response))
    return tuple(response for _, response in sorted(ordered, key=lambda entry: entry[0])[:most])


def read_source(path: Path) -> Iterator[tuple[Prompt, Response]]:
    """Yield the prompts of a directory or of a file, each with a response. Raises ConfigError."""
    if path.is_dir():
        stages = [path] if not (path / "stages").is_dir() else [link.resolve() for link in (path / "stages").iterdir()]
        for read in (read_evaluation, read_best_of_n, read_samples):
            found = [pair for stage in sorted(stages) for pair in read(StageDirectory(stage))]
            if found:
                yield from found
                return
        raise ConfigError(KEY, path, "it holds no responses", FIX)
    if not path.is_file():
        raise ConfigError(KEY, path, "there is no such directory or file", FIX)
    for number, row in enumerate(read_rows(path), start=1):
        yield from read_row(row, path, number)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none where there is no such file. Raises ConfigError for one that is damaged."""
    try:
        rows = list(read_lines(file))
    except Unreadable as error:
        raise ConfigError(KEY, file, str(error), "give another file") from error
    if None in rows:
        problem = f"line {rows.index(None) + 1} is no JSON object"
        raise ConfigError(KEY, file, problem, "mend that line, or leave it out")
    return [row for row in rows if row is not None]


def read_row(row: Mapping[str, Any], path: Path, number: int) -> Iterator[tuple[Prompt, Response]]:
    """Yield what a row of a file holds: `prompt` with `responses`, `response`, or `chosen` and `rejected`. Raises
    ConfigError."""
    prompt, texts = find_prompt(row), row.get("responses", [row[key] for key in ANSWERS if key in row])
    is_list = isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)
    if prompt is None or not is_list:
        problem = f"row {number} has no `prompt` with `response` or a list of texts `responses`"
        raise ConfigError(KEY, path, problem, "write such rows, as of a chat's transcript")
    for text in texts:
        yield prompt, describe(text, row)


def find_prompt(row: Mapping[str, Any]) -> Prompt | None:
    """Return the prompt of a row, of a conversation its messages; None where it has none."""
    for found in (row.get("messages"), row.get("prompt")):
        if isinstance(found, str):
            return found
        turns = found if isinstance(found, list) else []
        if turns and all(
            isinstance(turn, dict) and {type(turn.get(key)) for key in ("role", "content")} == {str} for turn in turns
        ):
            return turns
    return None


def describe(text: str, row: Mapping[str, Any]) -> Response:
    """Return a response with what its row says of it."""
    ended = row["ended"] if isinstance(row.get("ended"), bool) else None
    names = as_text(row.get("model")), as_text(row.get("fingerprint"))
    return Response(text, *names, as_int(row.get("seed")), as_int(row.get("number")), ended)


def read_evaluation(stage: StageDirectory) -> Iterator[tuple[Prompt, Response]]:
    """Yield the answers that a stage `evaluate` has kept."""
    file, policy = stage.path / FILE, find_policy_of(stage)
    for number, row in enumerate(read_rows(file), start=1):
        yield from read_row(row | policy, file, number)


def read_best_of_n(stage: StageDirectory) -> Iterator[tuple[Prompt, Response]]:
    """Yield the responses of the training records that a stage `best_of_n` has made."""
    file, policy = stage.path / "data" / "train.jsonl", find_policy_of(stage)
    for number, row in enumerate(read_rows(file), start=1):
        yield from read_row(row | policy, file, number)


def read_samples(stage: StageDirectory) -> Iterator[tuple[Prompt, Response]]:
    """Yield the answers of the last evaluation while a policy was trained: its own, and those of what it began as."""
    rows, spec, start = read_rows(stage.samples_file), read_spec_values(stage), find_policy_of(stage)
    own = {"model": stage.path.name, "fingerprint": spec.get("fingerprint"), "seed": start["seed"]}
    last = max((as_int(row.get("step")) or 0 for row in rows), default=0)
    for row in (row for row in rows if (as_int(row.get("step")) or 0) == last):
        prompt, keys = find_prompt(row), [key for key in row if f"{key}{SCORED}" in row]
        if prompt is None:
            continue
        for key in keys:
            yield prompt, describe(str(row[key]), own if key == keys[-1] else start)


def find_policy_of(stage: StageDirectory) -> dict[str, Any]:
    """Return the name and the fingerprint of the policy that a stage starts from, and the stage's seed."""
    spec = read_spec_values(stage)
    known = {"model": None, "fingerprint": None, "seed": as_mapping(spec.get("config")).get("seed")}
    actor = as_text(as_mapping(spec.get("inputs")).get("actor"))
    if actor is None:
        return known
    path = Path(moved_path(actor, stage))
    made = path.parent if path.name == "model" else path
    return known | {"model": made.name, "fingerprint": read_spec_values(StageDirectory(made)).get("fingerprint")}
