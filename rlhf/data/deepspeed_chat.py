"""DeepSpeed-Chat's sixteen data sets, with exactly the texts that it trains on (data.format=deepspeed-chat).

Source: DeepSpeedExamples, applications/DeepSpeed-Chat/dschat/utils/data/raw_datasets.py and data_utils.py, commit 45b4b715.
A prompt is " Human: ... Assistant:", a response begins with a blank; nothing else is stripped or added. A row for which
DeepSpeed-Chat has no text is dropped, as there.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from rlhf.data.cells import Cells, Dropped, require_list, require_number, require_object, require_text
from rlhf.data.converters import Converter
from rlhf.data.dataset import Record

# What WebGPT's answers lose: brackets with what they hold, first with the blank before them, then without.
BRACKETS = (re.compile(r" [\[\(].*?[\]\)]"), re.compile(r"[\[\(].*?[\]\)]"))


def ask(question: str) -> str:
    """Return the prompt of a question."""
    return f" Human: {question} Assistant:"


def convert_static(cells: Cells) -> Iterator[Record]:
    """Dahoas/rm-static and Dahoas/full-hh-rlhf: the columns as they are."""
    prompt, chosen = require_text(cells, "prompt", "a prompt"), require_text(cells, "chosen", "a chosen response")
    yield Record(prompt, chosen=chosen, rejected=require_text(cells, "rejected", "a rejected response"))


def convert_synthetic(cells: Cells) -> Iterator[Record]:
    """Dahoas/synthetic-instruct-gptj-pairwise."""
    prompt, chosen = require_text(cells, "prompt", "a prompt"), require_text(cells, "chosen", "a chosen response")
    rejected = require_text(cells, "rejected", "a rejected response")
    yield Record(ask(prompt), chosen=" " + chosen, rejected=" " + rejected)


def convert_reward_datasets(cells: Cells) -> Iterator[Record]:
    """yitingxie/rlhf-reward-datasets: PPO reads the prompt and "Assistant:", the other stages the prompt and a whole
    response, which begins with "Assistant:". Responses that do not are dropped."""
    prompt, begin = require_text(cells, "prompt", "a prompt"), "Assistant:"
    texts = {side: require_text(cells, side, f"a {side} response") for side in ("chosen", "rejected")}
    if not all(text.startswith(begin) for text in texts.values()):
        raise Dropped('pairs that do not begin with "Assistant:"')
    chosen, rejected = (texts[side].removeprefix(begin) for side in ("chosen", "rejected"))
    yield Record(prompt + begin, chosen=chosen, rejected=rejected)


def convert_webgpt(cells: Cells) -> Iterator[Record]:
    """openai/webgpt_comparisons: the answer of the higher score is chosen, of two of one score the first. Brackets and what
    they hold, which are citations, are removed."""
    question = require_text(require_object(cells.get("question"), "question"), "full_text", "a prompt")
    scores = [require_number(cells, f"score_{number}", "a score") for number in (0, 1)]
    answers = [remove_brackets(require_text(cells, f"answer_{number}", "two answers")) for number in (0, 1)]
    better = 0 if scores[0] >= scores[1] else 1
    yield Record(ask(question), chosen=" " + answers[better], rejected=" " + answers[1 - better])


def remove_brackets(text: str) -> str:
    """Return a text without round and square brackets and what they hold."""
    for pattern in BRACKETS:
        text = pattern.sub("", text)
    return text


def convert_shp(cells: Cells) -> Iterator[Record]:
    """stanfordnlp/SHP: A is chosen where `labels` is 1, else B."""
    first, second = (require_text(cells, f"human_ref_{letter}", "two responses") for letter in "AB")
    chosen, rejected = (first, second) if require_number(cells, "labels", "a label") == 1 else (second, first)
    yield Record(ask(require_text(cells, "history", "a prompt")), chosen=" " + chosen, rejected=" " + rejected)


def convert_sharegpt(cells: Cells) -> Iterator[Record]:
    """pvduy/sharegpt_alpaca_oa_vicuna_format: USER and ASSISTANT get their names here, wherever they stand; rows whose
    prompt or label is empty are dropped."""
    prompt, label = require_text(cells, "prompt", "a prompt"), require_text(cells, "label", "a response")
    if not prompt or not label:
        raise Dropped("rows without a prompt or a response")
    yield Record(prompt.replace("USER", "Human").replace("ASSISTANT", "Assistant"), " " + label)


def convert_zhihu(cells: Cells) -> Iterator[Record]:
    """wangrui6/Zhihu-KOL."""
    prompt, response = require_text(cells, "INSTRUCTION", "a prompt"), require_text(cells, "RESPONSE", "a response")
    yield Record(ask(prompt), " " + response)


def first_passage(cells: Cells, column: str) -> str:
    """Return the text of the first passage in a column. Raises Dropped where there is none."""
    passage = require_object(require_list(cells, column, f"passages in {column}")[0], column)
    return require_text(passage, "text", f"passages in {column}")


def convert_miracl_zh(cells: Cells) -> Iterator[Record]:
    """Cohere/miracl-zh-queries-22-12: the first passages that answer the query and that do not."""
    prompt = ask(require_text(cells, "query", "a prompt"))
    chosen, rejected = first_passage(cells, "positive_passages"), first_passage(cells, "negative_passages")
    yield Record(prompt, chosen=" " + chosen, rejected=" " + rejected)


def convert_miracl_ja(cells: Cells) -> Iterator[Record]:
    """Cohere/miracl-ja-queries-22-12: as the Chinese ones; a query without a passage that does not answer it has a response
    to imitate and no pair."""
    prompt, response = ask(require_text(cells, "query", "a prompt")), " " + first_passage(cells, "positive_passages")
    if cells.get("negative_passages"):
        yield Record(prompt, chosen=response, rejected=" " + first_passage(cells, "negative_passages"))
    else:
        yield Record(prompt, response)


def convert_hc3(cells: Cells) -> Iterator[Record]:
    """Hello-SimpleAI/HC3-Chinese: the first answer of a person."""
    prompt = require_text(cells, "question", "a prompt")
    answer = {"answer": require_list(cells, "human_answers", "an answer of a person")[0]}
    yield Record(ask(prompt), " " + require_text(answer, "answer", "an answer of a person"))


def mkqa(language: str) -> Converter:
    """Return the converter of mkqa's questions in a language: the first answer, where it is no null."""

    def convert_mkqa(cells: Cells) -> Iterator[Record]:
        question = require_text(require_object(cells.get("queries"), "queries"), language, "a prompt")
        answers: Sequence[Any] = require_list(require_object(cells.get("answers"), "answers"), language, "an answer")
        yield Record(ask(question), " " + require_text(require_object(answers[0], "answers"), "text", "an answer"))

    return convert_mkqa


def convert_qg_jaquad(cells: Cells) -> Iterator[Record]:
    """lmqg/qg_jaquad."""
    yield Record(ask(require_text(cells, "question", "a prompt")), " " + require_text(cells, "sentence", "a response"))


def convert_qag_jaquad(cells: Cells) -> Iterator[Record]:
    """lmqg/qag_jaquad: the first question on a paragraph."""
    question = {"question": require_list(cells, "questions", "a prompt")[0]}
    prompt = ask(require_text(question, "question", "a prompt"))
    yield Record(prompt, " " + require_text(cells, "paragraph", "a response"))


def convert_jsonfile(cells: Cells) -> Iterator[Record]:
    """local/jsonfile: a blank before each text."""
    prompt, chosen = require_text(cells, "prompt", "a prompt"), require_text(cells, "chosen", "a chosen response")
    rejected = require_text(cells, "rejected", "a rejected response")
    yield Record(" " + prompt, chosen=" " + chosen, rejected=" " + rejected)


# By the names that data.converter takes.
CONVERTERS: dict[str, Converter] = {
    "deepspeed-chat/static": convert_static,
    "deepspeed-chat/synthetic-instruct": convert_synthetic,
    "deepspeed-chat/reward-datasets": convert_reward_datasets,
    "deepspeed-chat/webgpt": convert_webgpt,
    "deepspeed-chat/shp": convert_shp,
    "deepspeed-chat/sharegpt": convert_sharegpt,
    "deepspeed-chat/zhihu": convert_zhihu,
    "deepspeed-chat/miracl-zh": convert_miracl_zh,
    "deepspeed-chat/miracl-ja": convert_miracl_ja,
    "deepspeed-chat/hc3-chinese": convert_hc3,
    "deepspeed-chat/mkqa-chinese": mkqa("zh_cn"),
    "deepspeed-chat/mkqa-japanese": mkqa("ja"),
    "deepspeed-chat/qg-jaquad": convert_qg_jaquad,
    "deepspeed-chat/qag-jaquad": convert_qag_jaquad,
    "deepspeed-chat/jsonfile": convert_jsonfile,
}


def cut(count: int, proportions: Sequence[float], seed: int) -> list[list[int]]:
    """Cut the numbers below `count` into parts of these proportions, in DeepSpeed-Chat's order and with its rounding.

    The numbers are shuffled by numpy's RandomState of the seed. The bound of each part is that of the part before it and
    the rounded share (half to even); what rounding adds or lacks in all is taken from every bound but the first, 0, so
    that the first part absorbs it.
    """
    import numpy as np

    order = np.arange(count, dtype=np.uint32)
    np.random.RandomState(seed).shuffle(order)
    whole = sum(proportions)
    bounds = [0]
    for share in proportions:
        bounds.append(bounds[-1] + round(share / whole * count))
    excess = bounds[-1] - count
    bounds = [0, *(bound - excess for bound in bounds[1:])]
    return [[int(place) for place in order[low:high]] for low, high in pairwise(bounds)]
