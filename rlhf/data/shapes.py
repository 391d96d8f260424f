"""The shapes of data sets: which columns are read by which converter, and which shape a data set has."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data, Member
from rlhf.config.sources import OWN_COLUMNS
from rlhf.data import converters, deepspeed_chat
from rlhf.data.cells import Cells
from rlhf.data.converters import Converter

NumberedCells = tuple[int, Cells]


@dataclass(frozen=True)
class Shape:
    """A shape of data sets.

    Attributes:
        convert: Reads a row.
        columns: Sets of columns; a data set that has all columns of a set may have this shape. Without any, the shape is
            only named.
        gather: Makes rows of their own for what stands in several rows; None where a row is read by itself.
    """

    convert: Converter
    columns: tuple[str, ...] = ()
    gather: Callable[[Iterable[NumberedCells]], Iterator[NumberedCells]] | None = None

    @property
    def sets(self) -> list[frozenset[str]]:
        """The sets of columns, as sets."""
        return [frozenset(columns.split()) for columns in self.columns]


SHAPES: dict[str, Shape] = {
    "pairs": Shape(
        converters.convert_pairs,
        ("prompt", "prompt response", "prompt chosen rejected", "prompt response chosen rejected", "chosen rejected"),
    ),
    "transcripts": Shape(converters.convert_transcripts),
    "messages": Shape(converters.convert_messages, ("messages", "conversations")),
    "completion": Shape(converters.convert_completion, ("prompt completion",)),
    "alpaca": Shape(converters.convert_alpaca, ("instruction output",)),
    "dolly": Shape(converters.convert_dolly, ("instruction response",)),
    "lmflow": Shape(converters.convert_lmflow, ("type instances",)),
    "helpsteer2": Shape(converters.convert_helpsteer2, ("prompt response_1 response_2 preference_strength",)),
    "helpsteer3": Shape(converters.convert_helpsteer3, ("context response1 response2 overall_preference",)),
    "shp": Shape(converters.convert_shp, ("history human_ref_A human_ref_B labels",)),
    "saferlhf": Shape(converters.convert_saferlhf, ("prompt response_0 response_1 better_response_id",)),
    "webgpt": Shape(converters.convert_webgpt, ("question answer_0 answer_1 score_0 score_1",)),
    "summaries": Shape(converters.convert_summaries, ("info summaries choice",)),
    "ranked": Shape(converters.convert_ranked, ("prompt answers",)),
    "ultrafeedback": Shape(converters.convert_ultrafeedback, ("instruction completions",)),
    "tree": Shape(converters.convert_tree, ("message_id parent_id text role",), converters.gather_tree),
    "question": Shape(converters.convert_question, ("question answer",)),
    "problem": Shape(converters.convert_problem, ("problem solution",)),
    **{name: Shape(convert) for name, convert in deepspeed_chat.CONVERTERS.items()},
}


def find_shape(data: Data | Member, columns: dict[str, Any], origin: str) -> tuple[str, Shape]:
    """Return the shape of a data set, with its name.

    It is the one that `data.converter` names. `auto` is `pairs` where `data.columns` names columns, or else the one shape
    whose columns the data set has.

    Args:
        data: The keys of the data set.
        columns: The columns that the rows have, each with a value that stands in it.
        origin: What the error calls the data set.

    Raises:
        ConfigError: No shape or several shapes have these columns, or what `data.converter` names does not exist.
    """
    name = data.converter
    if ":" in name:
        return name, Shape(import_converter(name))
    if name == "auto" and asdict(data.columns) != OWN_COLUMNS:
        name = "pairs"
    if name != "auto":
        return name, named_shape(name)
    found = match_shapes(columns)
    if len(found) == 1:
        return found[0], SHAPES[found[0]]
    has = ", ".join(columns)
    if found:
        problem = f"{origin} has the columns {has}, which may be {' or '.join(found)}"
        raise ConfigError("data.converter", name, problem, f"say which it is, as data.converter={found[0]}")
    known = "; ".join(f"{name} ({', '.join(shape.columns[-1].split())})" for name, shape in SHAPES.items() if shape.columns)
    fix = f"name the column that holds the prompt, or set data.converter; the shapes known are {known}"
    raise ConfigError("data.columns.prompt", data.columns.prompt, f"no row has it (found: {has})", fix)


def named_shape(name: str) -> Shape:
    """Return a shape by its name. Raises ConfigError where there is none."""
    if name not in SHAPES:
        fix = f"choose one of auto, {', '.join(SHAPES)}, or a function as package.module:name"
        raise ConfigError("data.converter", name, "there is no such shape", fix)
    return SHAPES[name]


def match_shapes(columns: dict[str, Any]) -> list[str]:
    """Return the shapes whose columns a data set has; of two sets of columns the larger one counts if it holds the
    other."""
    fitting = [(name, wanted) for name, shape in SHAPES.items() for wanted in shape.sets if wanted <= columns.keys()]
    if any(wanted >= {"chosen", "rejected"} for _, wanted in fitting):  # a list `messages` beside a pair repeats a side
        fitting = [(name, wanted) for name, wanted in fitting if name != "messages"]
    largest = [(name, wanted) for name, wanted in fitting if not any(wanted < other for _, other in fitting)]
    names = list(dict.fromkeys(name for name, _ in largest))
    if names == ["pairs"] and "prompt" not in columns and isinstance(columns["chosen"], str):
        return ["transcripts"]
    return names


def import_converter(path: str) -> Converter:
    """Return the function at a dotted path, `package.module:name`. Raises ConfigError where there is none."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "give a function as package.module:name, in a module that Python finds"
        raise ConfigError("data.converter", path, f"it cannot be imported ({error})", fix) from error
    if not callable(found):
        raise ConfigError("data.converter", path, "it is no function", "give a function of a row's cells")
    converter: Converter = found
    return converter
