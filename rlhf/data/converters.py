"""Converters: from a row of a data set, in the shape that its authors gave it, to records.

A converter is a pure function from the cells of a row, by column, to records. It raises CellError for a cell of a wrong
type, and Dropped for a row that holds no record. rlhf/data/shapes.py says which columns are read by which converter.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf.data.cells import (
    CellError,
    Cells,
    Dropped,
    check_text,
    is_messages,
    read_message,
    read_messages,
    read_text,
    require_list,
    require_number,
    require_object,
    require_text,
    split_marked_turns,
)
from rlhf.data.dataset import Message, Record

Converter = Callable[[Mapping[str, Any]], Iterator[Record]]

TURN = re.compile(r"(?:\n\n|^)(Human|Assistant):")
LABELS = {"true": True, "1": True, "false": False, "0": False}  # in CSV a label is text


def keep_meta(cells: Cells, *read: str) -> dict[str, Any]:
    """Return the cells that were not read as text and hold a single value: ids, sources, scores, labels."""
    kinds = (str, int, float, bool)
    return {name: value for name, value in cells.items() if name not in read and isinstance(value, kinds)}


def split_last_answer(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """Split a conversation into what comes before its last answer, and that answer. What follows the answer is left out.
    Raises Dropped for a conversation without one."""
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=0)
    if last == 0:
        raise Dropped("conversations without an answer")
    return tuple(messages[:last]), messages[last].content


def convert_pairs(cells: Cells) -> Iterator[Record]:
    """Yield a prompt with a response to imitate, with a chosen and a rejected one, or by itself: the columns `prompt`,
    `response`, `chosen` and `rejected`. Each is text or a list of messages; chosen and rejected lists may hold the
    prompt."""
    sides = {side: cells.get(side) for side in ("response", "chosen", "rejected")}
    if any(is_messages(value) for value in sides.values()):
        yield convert_message_pairs(cells)
        return
    prompt = read_messages(cells, "prompt") if is_messages(cells.get("prompt")) else read_text(cells, "prompt")
    if prompt is None:
        raise Dropped("rows without a prompt")
    if prompt == "":
        raise Dropped("rows with an empty prompt")
    response, chosen, rejected = (read_text(cells, side) for side in sides)
    yield Record(prompt, response, chosen, rejected, meta=keep_meta(cells, "prompt", *sides))


def convert_message_pairs(cells: Cells) -> Record:
    """Return the record of a row whose responses are lists of messages: whole conversations, or the answer alone where the
    column `prompt` holds what comes before it."""
    given = read_messages(cells, "prompt") if is_messages(cells.get("prompt")) else None
    if given is None and (text := read_text(cells, "prompt")) is not None:
        given = (Message("user", text),)
    prompts: list[tuple[Message, ...]] = []
    texts: dict[str, str | None] = {}
    for side in ("response", "chosen", "rejected"):
        messages = read_messages(cells, side)
        if messages is None:
            texts[side] = None
            continue
        if all(message.role == "assistant" for message in messages):
            if given is None:
                raise Dropped("rows without a prompt")
            messages = (*given, *messages)
        prompt, texts[side] = split_last_answer(messages)
        prompts.append(prompt)
    if any(prompt != prompts[0] for prompt in prompts):
        raise Dropped("pairs whose conversations differ before the last answer")
    if given is not None and not is_part(given, prompts[0]):
        raise Dropped("rows whose prompt is not in their conversation")
    return Record(prompts[0], texts["response"], texts["chosen"], texts["rejected"], meta=keep_meta(cells, "prompt"))


def is_part(given: Sequence[Message], prompt: Sequence[Message]) -> bool:
    """Tell whether messages that are given as the prompt are in the conversation up to its answer: as whole messages, or,
    where the prompt is one text, within one of them or around it."""
    if len(given) > 1:
        return all(message in prompt for message in given)
    text = given[0].content.strip()
    return any(text in message.content or message.content.strip() in text for message in prompt if message.role == "user")


def convert_transcripts(cells: Cells) -> Iterator[Record]:
    """Two transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." of one conversation, which differ in the last answer: the
    columns `chosen` and `rejected`, as in Anthropic's HH-RLHF."""
    chosen = split_transcript(require_text(cells, "chosen", "a chosen transcript"), "chosen")
    rejected = split_transcript(require_text(cells, "rejected", "a rejected transcript"), "rejected")
    (prompt, better), (other, worse) = split_last_answer(chosen), split_last_answer(rejected)
    if prompt != other:
        raise Dropped("pairs whose conversations differ before the last answer")
    yield Record(prompt, chosen=better, rejected=worse, meta=keep_meta(cells, "chosen", "rejected"))


def split_transcript(text: str, column: str) -> tuple[Message, ...]:
    """Return the turns of a transcript. The blank after the colon belongs to the transcript, not to the turn. Raises
    CellError for a text that does not begin with a turn."""
    parts = TURN.split(text)
    if parts[0].strip() or len(parts) == 1:
        raise CellError(column, "it is no transcript", 'begin it with "Human: ", and each turn with a blank line')
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(names[who], said.removeprefix(" ")) for who, said in zip(parts[1::2], parts[2::2], strict=True))


def convert_messages(cells: Cells) -> Iterator[Record]:
    """Yield a conversation whose last answer is imitated: the column `messages`, with `role` and `content`, or
    `conversations`, with ShareGPT's `from` and `value`; a column `system` is the system message of a conversation
    without one."""
    column = "messages" if "messages" in cells else "conversations"
    messages = read_messages(cells, column)
    if messages is None:
        raise Dropped("rows without messages")
    prompt, response = split_last_answer(add_system(messages, read_text(cells, "system")))
    yield Record(prompt, response, meta=keep_meta(cells, column, "system"))


def add_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Return a conversation that begins with a system message, if there is one."""
    return (Message("system", system), *messages) if system and messages[0].role != "system" else messages


def convert_completion(cells: Cells) -> Iterator[Record]:
    """Yield a prompt and its completion, and perhaps whether it is a desirable one: `prompt`, `completion`, `label`
    (KTO)."""
    if is_messages(cells.get("completion")):
        whole = convert_message_pairs({"prompt": cells.get("prompt"), "response": cells["completion"]})
        prompt, completion = whole.prompt, str(whole.response)
    else:
        record = next(convert_pairs({"prompt": cells.get("prompt")}))
        prompt, completion = record.prompt, require_text(cells, "completion", "a completion")
    meta = keep_meta(cells, "prompt", "completion", "label")
    label = LABELS.get(str(cells.get("label")).lower(), cells.get("label"))
    if label is None:
        yield Record(prompt, completion, meta=meta)
        return
    if label not in (0, 1):
        raise CellError("label", f"it is {label!r:.40}, not a label", "write true or false")
    yield Record(prompt, labelled=((completion, bool(label)),), meta=meta)


def convert_alpaca(cells: Cells) -> Iterator[Record]:
    """Yield an instruction, perhaps an input to it, and an output: `instruction`, `input`, `output`. The input follows the
    instruction after a blank line."""
    parts = [require_text(cells, "instruction", "an instruction"), read_text(cells, "input")]
    prompt = "\n\n".join(part for part in parts if part)
    meta = keep_meta(cells, "instruction", "input", "output", "text")
    yield Record(prompt, require_text(cells, "output", "an output"), meta=meta)


def convert_dolly(cells: Cells) -> Iterator[Record]:
    """Yield an instruction, perhaps a context, and a response: `instruction`, `context`, `response`. The context follows
    the instruction as Dolly's own training has it, under "Input:"."""
    prompt, context = require_text(cells, "instruction", "an instruction"), read_text(cells, "context")
    prompt += f"\n\nInput:\n{context}" if context else ""
    meta = keep_meta(cells, "instruction", "context", "response")
    yield Record(prompt, require_text(cells, "response", "a response"), meta=meta)


def convert_lmflow(cells: Cells) -> Iterator[Record]:
    """LMFlow's JSON: `type` says what each of `instances` is: text2text (input, output), conversation (messages,
    system), or paired_conversation (chosen, rejected). Raises CellError for another type: text_only has no prompt."""
    kind = check_text(cells.get("type"), "type")
    readers = {
        "text2text": read_text2text,
        "conversation": convert_messages,
        "paired_conversation": read_paired_conversation,
    }
    if kind not in readers:
        fix = f"give one of {', '.join(readers)}; plain text is read as ppo.ptx.file"
        raise CellError("type", f"instances of the type {kind!r:.40} have no prompt and response", fix)
    for place, instance in enumerate(require_list(cells, "instances", "instances")):
        column = f"instances[{place}]"
        try:
            yield from readers[kind](require_object(instance, column))
        except CellError as error:
            raise CellError(f"{column}.{error.column}", error.problem, error.fix) from error


def read_text2text(cells: Cells) -> Iterator[Record]:
    """Yield an instance of LMFlow's text2text."""
    meta = keep_meta(cells, "input", "output")
    yield Record(require_text(cells, "input", "an input"), require_text(cells, "output", "an output"), meta=meta)


def read_paired_conversation(cells: Cells) -> Iterator[Record]:
    """Yield an instance of LMFlow's paired_conversation."""
    sides: dict[str, tuple[tuple[Message, ...], str]] = {}
    for side in ("chosen", "rejected"):
        inner = require_object(cells.get(side), side)
        messages = read_messages(inner, "messages")
        if messages is None:
            raise Dropped("rows without messages")
        sides[side] = split_last_answer(add_system(messages, read_text(inner, "system")))
    if sides["chosen"][0] != sides["rejected"][0]:
        raise Dropped("pairs whose conversations differ before the last answer")
    prompt, chosen = sides["chosen"]
    yield Record(prompt, chosen=chosen, rejected=sides["rejected"][1], meta=keep_meta(cells))


def prefer(
    prompt: str | tuple[Message, ...], first: str, second: str, preference: float, meta: Mapping[str, Any]
) -> Record:
    """Return the pair of two responses, of which the first is the better one where `preference` is above 0, the second
    where it is below. Raises Dropped for a tie."""
    if preference == 0:
        raise Dropped("pairs without a preference")
    chosen, rejected = (first, second) if preference > 0 else (second, first)
    return Record(prompt, chosen=chosen, rejected=rejected, meta=meta)


def convert_helpsteer2(cells: Cells) -> Iterator[Record]:
    """HelpSteer2's preferences: `prompt`, `response_1`, `response_2`, and `preference_strength` from -3, the first is much
    better, to 3, the second is."""
    first, second = (require_text(cells, f"response_{number}", "two responses") for number in (1, 2))
    strength = require_number(cells, "preference_strength", "a preference")
    meta = keep_meta(cells, "prompt", "response_1", "response_2")
    yield prefer(split_marked_turns(require_text(cells, "prompt", "a prompt")), first, second, -strength, meta)


def convert_helpsteer3(cells: Cells) -> Iterator[Record]:
    """HelpSteer3's preferences: the messages of `context`, `response1`, `response2`, and `overall_preference`, below 0
    where the first is better."""
    prompt = read_messages(cells, "context")
    if prompt is None:
        raise Dropped("rows without a prompt")
    first, second = (require_text(cells, f"response{number}", "two responses") for number in (1, 2))
    preference = require_number(cells, "overall_preference", "a preference")
    yield prefer(prompt, first, second, -preference, keep_meta(cells, "response1", "response2"))


def convert_shp(cells: Cells) -> Iterator[Record]:
    """Stanford's SHP: `history`, `human_ref_A`, `human_ref_B`, and `labels`, 1 where A is preferred, else 0."""
    first, second = (require_text(cells, f"human_ref_{letter}", "two responses") for letter in "AB")
    label = require_number(cells, "labels", "a preference")
    meta = keep_meta(cells, "history", "human_ref_A", "human_ref_B")
    yield prefer(require_text(cells, "history", "a prompt"), first, second, 1.0 if label == 1 else -1.0, meta)


def convert_saferlhf(cells: Cells) -> Iterator[Record]:
    """PKU-SafeRLHF: `prompt`, `response_0`, `response_1`, and the number of the better one in `better_response_id`."""
    first, second = (require_text(cells, f"response_{number}", "two responses") for number in (0, 1))
    better = require_number(cells, "better_response_id", "a preference")
    if better not in (0, 1):
        raise Dropped("pairs without a preference")
    meta = keep_meta(cells, "prompt", "response_0", "response_1")
    yield prefer(require_text(cells, "prompt", "a prompt"), first, second, 1.0 - 2.0 * better, meta)


def convert_webgpt(cells: Cells) -> Iterator[Record]:
    """OpenAI's WebGPT comparisons: `question` with `full_text`, `answer_0`, `answer_1`, and their scores, `score_0` and
    `score_1`."""
    prompt = require_text(require_object(cells.get("question"), "question"), "full_text", "a prompt")
    first, second = (require_text(cells, f"answer_{number}", "two responses") for number in (0, 1))
    scores = [require_number(cells, f"score_{number}", "a preference") for number in (0, 1)]
    yield prefer(prompt, first, second, scores[0] - scores[1], keep_meta(cells, "answer_0", "answer_1"))


# The fields of a post that OpenAI's summaries are of, as they are put to a model (arXiv 2009.01325, appendix B.5).
POST_FORMAT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def convert_summaries(cells: Cells) -> Iterator[Record]:
    """OpenAI's comparisons of summaries: `info` with subreddit, title and post, two `summaries` with `text`, and the number
    of the better one, `choice`. Articles of CNN and the Daily Mail, which the validation split holds too, are dropped."""
    info = require_object(cells.get("info"), "info")
    if info.get("post") is None:
        raise Dropped("articles instead of posts")
    post = {name: require_text(info, name, f"a {name}") for name in ("subreddit", "title", "post")}
    summaries = require_list(cells, "summaries", "two summaries")
    if len(summaries) != 2:
        raise Dropped("rows without two summaries")
    first, second = (require_text(require_object(item, "summaries"), "text", "two summaries") for item in summaries)
    choice = require_number(cells, "choice", "a preference")
    yield prefer(POST_FORMAT.format(**post), first, second, 1.0 - 2.0 * choice, keep_meta(cells))


def convert_ranked(cells: Cells) -> Iterator[Record]:
    """Yield a prompt and `answers` with `answer` and `rank`, 1 the best, as in Nectar; the prompt is a list of messages, or
    text, of which a transcript is read as messages."""
    messages = read_messages(cells, "prompt") if is_messages(cells.get("prompt")) else None
    text = "" if messages is not None else require_text(cells, "prompt", "a prompt")
    prompt: str | tuple[Message, ...] = text if messages is None else messages
    if TURN.match(text):
        turns = split_transcript(text, "prompt")
        prompt = turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content.strip() else turns
    answers = [require_object(item, "answers") for item in require_list(cells, "answers", "answers")]
    ranked = tuple(
        (require_text(answer, "answer", "an answer"), -require_number(answer, "rank", "a rank")) for answer in answers
    )
    yield Record(prompt, ranked=ranked, meta=keep_meta(cells, "prompt"))


def convert_ultrafeedback(cells: Cells) -> Iterator[Record]:
    """UltraFeedback as it was published: `instruction` and `completions` with `response` and ratings of four aspects in
    `annotations`, whose mean is the score. Completions that lack a rating are left out."""
    prompt = require_text(cells, "instruction", "a prompt")
    scored = []
    for completion in require_list(cells, "completions", "completions"):
        ratings = rate_aspects(require_object(completion, "completions"))
        if ratings is not None:
            scored.append((require_text(completion, "response", "a response"), ratings))
    if not scored:
        raise Dropped("rows without rated completions")
    yield Record(prompt, ranked=tuple(scored), meta=keep_meta(cells, "instruction"))


def rate_aspects(completion: Cells) -> float | None:
    """Return the mean rating of a completion of UltraFeedback; None where one of its aspects has no number."""
    annotations = require_object(completion.get("annotations"), "completions.annotations")
    ratings = [str(require_object(aspect, "completions.annotations").get("Rating")) for aspect in annotations.values()]
    if not ratings or not all(rating.isdecimal() for rating in ratings):
        return None
    return sum(int(rating) for rating in ratings) / len(ratings)


def gather_tree(rows: Iterable[tuple[int, Cells]]) -> Iterator[tuple[int, Cells]]:
    """Gather the messages of conversation trees, one a row, to rows of their own: each message of a user with the
    messages up to it (`path`) and the answers to it (`answers`). The number is that of the user's message."""
    known: dict[Any, Cells] = {}
    answers: dict[Any, list[Cells]] = {}
    asked: list[tuple[int, Cells]] = []
    for number, cells in rows:
        if cells.get("deleted"):
            yield number, cells
            continue
        known[cells.get("message_id")] = cells
        if cells.get("role") == "assistant":
            answers.setdefault(cells.get("parent_id"), []).append(cells)
        else:
            asked.append((number, cells))
    for number, question in asked:
        path = [question]
        while path[0].get("parent_id") in known:
            path.insert(0, known[path[0]["parent_id"]])
        yield number, {"path": path, "answers": answers.get(question.get("message_id"), [])}


def convert_tree(cells: Cells) -> Iterator[Record]:
    """Yield a user's message of a conversation tree and the answers to it (see `gather_tree`), ranked where each has a
    `rank`, 0 the best. Without ranks the first answer is imitated."""
    if cells.get("deleted"):
        raise Dropped("deleted messages")
    if cells["path"][0].get("parent_id") is not None:
        raise Dropped("messages whose conversation lacks its beginning")
    prompt = tuple(read_message({"role": item.get("role"), "content": item.get("text")}, "text") for item in cells["path"])
    texts = [check_text(answer.get("text"), "text") for answer in cells["answers"]]
    ranks = [answer.get("rank") for answer in cells["answers"]]
    meta = keep_meta(cells["path"][-1], "text", "role", "parent_id")
    if len(texts) > 1 and all(rank is not None for rank in ranks):
        yield Record(prompt, ranked=tuple((text, -float(rank)) for text, rank in zip(texts, ranks, strict=True)), meta=meta)
    else:
        yield Record(prompt, texts[0] if texts else None, meta=meta)


def convert_question(cells: Cells) -> Iterator[Record]:
    """Yield a question and its answer, as in GSM8K: `question` and `answer`, in which the final one stands after "####".
    It is the record's meta `answer`, without commas and dollar signs."""
    prompt, answer = require_text(cells, "question", "a question"), require_text(cells, "answer", "an answer")
    final = answer.rpartition("####")[2].strip().replace(",", "").replace("$", "")
    yield Record(prompt, answer, meta=keep_meta(cells, "question", "answer") | {"answer": final})


def convert_problem(cells: Cells) -> Iterator[Record]:
    """Yield a problem and its solution, as in MATH: `problem` and `solution`. What the last box of the solution holds is
    the record's meta `answer`."""
    prompt, solution = require_text(cells, "problem", "a problem"), require_text(cells, "solution", "a solution")
    meta = keep_meta(cells, "problem", "solution")
    boxed = last_box(solution)
    yield Record(prompt, solution, meta=meta if boxed is None else meta | {"answer": boxed})


def last_box(text: str) -> str | None:
    """Return what the last \\boxed{...} or \\fbox{...} of a text holds; None where there is none or its brace stays
    open."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    depth, begin = 0, text.index("{", start)
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place]
    return None
