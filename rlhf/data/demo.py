"""A small world of questions about household things: prompts, answers of mixed quality, and a gold reward.

Everything is made from a seed, in readable English. The gold reward knows what a good answer is; it labels the training
comparisons (with Bradley-Terry noise) and judges the trained models, but no model ever sees it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from rlhf.config.schema import DemoData
from rlhf.data.dataset import Comparison, Dataset, Demonstration, Message, Prompt, Responses, Split
from rlhf.runtime.seeds import random_stream

THINGS = (
    "kettle", "bicycle", "jacket", "lamp", "carpet", "knife", "pan", "guitar", "tent", "boot", "clock", "chair", "mirror",
    "camera", "basket", "blanket", "kite", "wallet", "teapot", "helmet", "suitcase", "drum", "rug", "saddle", "lantern",
    "scarf", "violin", "canoe", "stove", "sofa",
)  # fmt: skip

QUESTIONS = (
    "How do I {task} a {thing}?",
    "What is the best way to {task} a {thing}?",
    "Can you help me {task} my {thing}?",
)

STEPS = {
    "clean": (
        "Wipe the {thing} with a soft cloth.",
        "Rinse the {thing} with warm water.",
        "Brush the dust off the {thing}.",
    ),
    "store": (
        "Keep the {thing} in a dry place.",
        "Cover the {thing} with a sheet.",
        "Put the {thing} on a high shelf.",
    ),
    "repair": (
        "Find the broken part of the {thing}.",
        "Tighten the loose screws of the {thing}.",
        "Glue the crack in the {thing}.",
    ),
    "choose": (
        "Compare the price of each {thing}.",
        "Pick a {thing} that feels solid.",
        "Ask how long the {thing} will last.",
    ),
}
REASONS = {
    "clean": "This works because dirt wears things out.",
    "store": "This works because damp air does harm.",
    "repair": "This works because small faults grow.",
    "choose": "This works because good things last.",
}
OPENERS = ("Of course!", "Good question.", "I am glad to help.")
CLOSINGS = ("I hope this helps.", "Let me know how it goes.")
DISMISSALS = ("That is a silly question.", "I do not know.", "Just buy a new one.")

# How often an answer has each property. Quality is mixed on purpose: there must be something to learn from preferences.
OPENER, DISMISSAL, REASON, CLOSING, REPEAT, WRONG_THING = 0.4, 0.25, 0.35, 0.35, 0.15, 0.07
STEP_COUNTS = (0.2, 0.5, 0.3)

# The gold reward's weights.
FIRST_STEP, SECOND_STEP, GOOD_REASON, GOOD_OPENER, GOOD_CLOSING = 1.0, 0.5, 0.5, 0.5, 0.5
DISMISSIVE, WRONG, REPEATED, UNKNOWN, UNFINISHED = -1.0, -0.5, -0.75, -0.5, -0.5

# Characters of the longest question.
LONGEST_PROMPT = max(
    len(wording.format(task=task, thing=thing)) for task in STEPS for thing in THINGS for wording in QUESTIONS
)


# A task, a thing and a wording.
Question = tuple[str, str, str]


def demo_dataset(config: DemoData, seed: int) -> Dataset:
    """Return the whole data set of a seed, made once for all parts that a process reads. No held-out prompt is a training
    prompt."""
    return make_dataset(astuple(config), seed)


@lru_cache(1)
def make_dataset(values: tuple, seed: int) -> Dataset:
    """Make the data set of a seed by the values of DemoData."""
    config = DemoData(*values)
    questions = [(task, thing, wording) for task in STEPS for thing in THINGS for wording in QUESTIONS]
    order = random_stream(seed, "demo prompts").permutation(len(questions))
    shuffled = [questions[i] for i in order]
    heldout, train = shuffled[: config.heldout_prompts], shuffled[config.heldout_prompts :]
    rounds = -(-config.demonstrations // len(train))
    asked = {
        q: begin_talk(q, questions, config.turns, random_stream(seed, "demo turns", n)) for n, q in enumerate(questions)
    }
    training = make_split(
        (train * rounds)[: config.demonstrations], train * config.rounds, asked, config, random_stream(seed, "demo train")
    )
    held = make_split(heldout, heldout * 2, asked, config, random_stream(seed, "demo heldout"))
    return Dataset(training, held, gold_reward, agreement(held.comparisons, config.label_noise))


@dataclass(frozen=True)
class Counts:
    """How many training records there are, and the most answers to one prompt that are compared."""

    demonstrations: int
    prompts: int
    comparisons: int
    answers: int


def demo_counts(config: DemoData) -> Counts:
    """Return what the training split of a data set will hold, whatever its seed, without making it. Answers may come twice
    in several rounds: `answers` is a bound then."""
    prompts = len(STEPS) * len(THINGS) * len(QUESTIONS) - config.heldout_prompts
    pairs = math.comb(config.answers_per_prompt, 2)
    answers = config.answers_per_prompt * config.rounds
    return Counts(config.demonstrations, prompts, prompts * config.rounds * pairs, answers)


def make_split(
    shown: list[Question], compared: list[Question], asked: Mapping[Question, Prompt], config: DemoData,
    rng: np.random.Generator,
) -> Split:  # fmt: skip
    """Make demonstrations of the questions `shown` and comparisons of answers to the questions `compared`; `asked` are the
    prompts in which they are asked."""
    demonstrations = [Demonstration(asked[q], answer(q[0], q[1], rng)) for q in shown]
    comparisons = [pair for q in compared for pair in compare(q, asked[q], config, rng)]
    prompts = list(dict.fromkeys(asked[q] for q in compared))
    return Split(demonstrations, comparisons, prompts, Responses(comparisons))


def begin_talk(q: Question, others: list[Question], turns: int, rng: np.random.Generator) -> Prompt:
    """Return the prompt in which a question is asked: of several turns, after `others` with an answer of one right step."""
    if turns == 1:
        return question(*q)
    talk: list[Message] = []
    for number in rng.choice(len(others), turns - 1, replace=False).tolist():
        task, thing, wording = others[number]
        step = str(rng.choice(STEPS[task])).format(thing=thing)
        talk += [Message("user", question(task, thing, wording)), Message("assistant", step)]
    return (*talk, Message("user", question(*q)))


def question(task: str, thing: str, wording: str) -> str:
    """Return the text of a question."""
    return wording.format(task=task, thing=thing)


def answer(task: str, thing: str, rng: np.random.Generator) -> str:
    """Return an answer of random quality."""
    sentences = [str(rng.choice(OPENERS))] if rng.random() < OPENER else []
    if rng.random() < DISMISSAL:
        sentences.append(str(rng.choice(DISMISSALS)))
    for step in rng.permutation(STEPS[task])[: rng.choice(len(STEP_COUNTS), p=STEP_COUNTS)]:
        about = str(rng.choice(THINGS)) if rng.random() < WRONG_THING else thing
        sentences.append(str(step).format(thing=about))
    if rng.random() < REASON:
        sentences.append(REASONS[task])
    if rng.random() < CLOSING:
        sentences.append(str(rng.choice(CLOSINGS)))
    if not sentences:
        sentences.append(DISMISSALS[1])
    if rng.random() < REPEAT:
        sentences.insert(0, sentences[0])
    return " ".join(sentences)


def compare(q: Question, prompt: Prompt, config: DemoData, rng: np.random.Generator) -> list[Comparison]:
    """Return all pairs of K different answers to a question, labelled with probability sigmoid(difference / noise)."""
    answers: list[str] = []
    while len(answers) < config.answers_per_prompt:
        candidate = answer(q[0], q[1], rng)
        if candidate not in answers:
            answers.append(candidate)
    text, pairs = question(*q), []
    for first, second in combinations(answers, 2):
        preferred = rng.random() < preference(gold_reward(text, first) - gold_reward(text, second), config.label_noise)
        pairs.append(Comparison(prompt, first, second) if preferred else Comparison(prompt, second, first))
    return pairs


def preference(difference: float, noise: float) -> float:
    """Bradley-Terry: the probability that the first of two answers is preferred; a tie is a coin's."""
    if noise == 0.0:
        return 0.5 + 0.5 * float(np.sign(difference))
    return float(1.0 / (1.0 + np.exp(-difference / noise)))


def agreement(comparisons: list[Comparison], noise: float) -> float:
    """Return the expected share of labels that the gold reward agrees with: what a perfect reward model can reach."""
    gaps = [abs(gold_reward(c.prompt, c.chosen) - gold_reward(c.prompt, c.rejected)) for c in comparisons]
    return float(np.mean([preference(gap, noise) for gap in gaps]))


def gold_reward(prompt: Prompt, response: str) -> float:
    """Return the true quality of an answer, from about -4 to 3: up to two different right steps about the right thing, a
    reason, courtesy at both ends; against it, dismissals, wrong steps, repetition, and text that is no sentence of this
    world. Of a conversation it is the answer to the last question."""
    question = prompt if isinstance(prompt, str) else prompt[-1].content
    match = re.search(r"(clean|store|repair|choose) (?:a|my) (\w+)\?", question)
    if match is None:
        raise ValueError(f"not a prompt of the demo data: {prompt!r}")
    task, thing = match[1], match[2]
    right = {step.format(thing=thing) for step in STEPS[task]}
    sentences = re.findall(r"[^.!?]*[.!?]|[^.!?]+$", response.strip())
    sentences = [sentence.strip() for sentence in sentences if sentence.strip()]
    distinct = list(dict.fromkeys(sentences))
    reward = (FIRST_STEP, SECOND_STEP)
    total = sum(reward[: len([s for s in distinct if s in right])])
    total += GOOD_REASON * (REASONS[task] in distinct)
    total += GOOD_OPENER * (bool(sentences) and sentences[0] in OPENERS)
    total += GOOD_CLOSING * (bool(sentences) and sentences[-1] in CLOSINGS)
    total += DISMISSIVE * any(s in DISMISSALS for s in distinct)
    total += REPEATED * (len(sentences) - len(distinct))
    total += sum(score_other_sentence(s, task, thing) for s in distinct if s not in right)
    return float(total + UNFINISHED * (not response.strip().endswith((".", "!", "?"))))


def score_other_sentence(sentence: str, task: str, thing: str) -> float:
    """Score a sentence that is no right step: a wrong step or reason costs, and so does a sentence of no known kind."""
    if sentence in OPENERS + CLOSINGS + DISMISSALS or sentence == REASONS[task]:
        return 0.0
    if sentence in REASONS.values() or any(is_step(sentence, step) for steps in STEPS.values() for step in steps):
        return WRONG
    return UNKNOWN


def is_step(sentence: str, step: str) -> bool:
    """Whether a sentence is this step, about any thing."""
    before, after = step.split("{thing}")
    return (
        sentence.startswith(before)
        and sentence.endswith(after)
        and sentence[len(before) : len(sentence) - len(after)] in THINGS
    )
