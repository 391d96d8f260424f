"""Rows of the data sets of conf/data, in the columns that their authors publish, with the texts that a model reads of them.

Nothing is downloaded: the texts are made up, the columns, types and quirks are those of the cards and of the code that
reads the sets elsewhere.
"""

from typing import Any

Texts = tuple[str, str, str | None]  # what is read before the response, the response, the rejected one


def turn(role: str, content: str) -> dict[str, str]:
    """A message as most sets have it."""
    return {"content": content, "role": role}


def talk(*texts: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]


def passage(text: str) -> dict[str, str]:
    """A passage of MIRACL."""
    return {"docid": "1#1", "title": "T", "text": text}


def rating(number: str) -> dict[str, str]:
    """An annotation of UltraFeedback."""
    return {"Rating": number, "Rationale": "because"}


def completion(text: str, *ratings: str) -> dict[str, Any]:
    """A completion of UltraFeedback."""
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations = {aspect: rating(number) for aspect, number in zip(aspects, ratings, strict=True)}
    return {"model": "m", "response": text, "annotations": annotations, "overall_score": 7.0, "critique": "c"}


def message(name: str, parent: str | None, role: str, text: str, rank: int | None) -> dict[str, Any]:
    """A message of OpenAssistant's trees."""
    return {
        "message_id": name, "parent_id": parent, "user_id": "u", "text": text, "role": role, "lang": "en", "rank": rank,
        "review_count": 3, "review_result": True, "deleted": False, "synthetic": False, "model_name": None,
        "message_tree_id": "1", "tree_state": "ready_for_export", "labels": {"name": ["quality"], "value": [0.7]},
    }  # fmt: skip


STATIC = {"prompt": "\n\nHuman: Why?\n\nAssistant:", "response": " So.", "chosen": " Because. ", "rejected": "  No."}
STATIC_TEXTS = ("\n\nHuman: Why?\n\nAssistant:", " Because. ", "  No.")
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello. \n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello. \n\nHuman: Why?\n\nAssistant: No.",
}
HH_TEXTS = ("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:", " Because.", " No.")
SHP = {
    "post_id": "p", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "Why?", "c_root_id_A": "a",
    "c_root_id_B": "b", "created_at_utc_A": 1, "created_at_utc_B": 2, "score_A": 5, "score_B": 9, "human_ref_A": "No.",
    "human_ref_B": "Because.", "labels": 0, "seconds_difference": 1.0, "score_ratio": 1.8,
}  # fmt: skip
MKQA = {
    "example_id": 1, "query": "Why?",
    "queries": {"zh_cn": "为什么?", "ja": "なぜ?"},
    "answers": {
        "zh_cn": [{"type": 5, "entity": "", "text": "因为", "aliases": []}],
        "ja": [{"type": 5, "entity": "", "text": "だから", "aliases": []}],
    },
}  # fmt: skip
MIRACL = {"query_id": "1", "query": "Why?", "positive_passages": [passage("Because."), passage("So.")]}
CONVERSATION_TEXTS = ("Human: Why?\n\nAssistant:", " Because.", " No.")
DEEPSPEED_TEXTS = (" Human: Why? Assistant:", " Because.", " No.")
TREE = [
    message("1", None, "prompter", "Why?", None), message("2", "1", "assistant", "No.", 1),
    message("3", "1", "assistant", "Because.", 0),
]  # fmt: skip
POST = {"id": "t3", "post": "I asked.", "title": "Why?", "subreddit": "tifu", "site": None, "article": None}
SUMMARIES = [{"text": " No.", "policy": "sup1", "note": None}, {"text": " Because.", "policy": "ref", "note": None}]
POST_TEXTS = "SUBREDDIT: r/tifu\n\nTITLE: Why?\n\nPOST: I asked.\n\nTL;DR:"

# The rows of a set by the option of `data` that names it, and the texts of its first record.
SETS: dict[str, tuple[list[dict[str, Any]], Texts]] = {
    "deepspeed-chat-rm-static": ([STATIC], STATIC_TEXTS),
    "deepspeed-chat-full-hh-rlhf": ([STATIC], STATIC_TEXTS),
    "deepspeed-chat-synthetic-instruct": (
        [{"prompt": "Why?", "chosen": "Because.", "rejected": "No. "}], (" Human: Why? Assistant:", " Because.", " No. ")
    ),
    "deepspeed-chat-reward-datasets": (
        [{"prompt": "Human: Why? ", "chosen": "Assistant: Because.", "rejected": "Assistant: No. Assistant: no"}],
        ("Human: Why? Assistant:", " Because.", " No. Assistant: no"),
    ),
    "deepspeed-chat-webgpt": (
        [{
            "question": {"dataset": "eli5", "id": "q", "full_text": "Why?"}, "quotes_0": {"title": [], "extract": []},
            "answer_0": "Because [1] of (so) it(a).", "tokens_0": {"prefix": [1], "completion": [2]}, "score_0": 0.0,
            "quotes_1": {"title": [], "extract": []}, "answer_1": "No [2].", "tokens_1": {"prefix": [1], "completion": [2]},
            "score_1": 0.0,
        }],
        (" Human: Why? Assistant:", " Because of it.", " No."),
    ),
    "deepspeed-chat-shp": ([SHP], DEEPSPEED_TEXTS),
    "deepspeed-chat-sharegpt": (
        [{"prompt": "USER: Why is a USER? ASSISTANT:", "label": "Because."}],
        ("Human: Why is a Human? Assistant:", " Because.", None),
    ),
    "deepspeed-chat-zhihu": (
        [{"INSTRUCTION": "Why?", "RESPONSE": "Because.", "SOURCE": "Zhihu", "METADATA": "{}"}],
        (" Human: Why? Assistant:", " Because.", None),
    ),
    "deepspeed-chat-miracl-zh": ([MIRACL | {"negative_passages": [passage("No.")]}], DEEPSPEED_TEXTS),
    "deepspeed-chat-hc3-chinese": (
        [{"id": "0", "question": "Why?", "human_answers": ["Because.", "So."], "chatgpt_answers": ["As a model"]}],
        (" Human: Why? Assistant:", " Because.", None),
    ),
    "deepspeed-chat-mkqa-chinese": ([MKQA], (" Human: 为什么? Assistant:", " 因为", None)),
    "deepspeed-chat-mkqa-japanese": ([MKQA], (" Human: なぜ? Assistant:", " だから", None)),
    "deepspeed-chat-miracl-ja": (
        [MIRACL | {"negative_passages": []}, MIRACL | {"negative_passages": [passage("No.")]}],
        (" Human: Why? Assistant:", " Because.", " No."),
    ),
    "deepspeed-chat-qg-jaquad": (
        [{"answer": "x", "question": "Why?", "sentence": "Because.", "paragraph": "P. Because.", "sentence_answer": "s"}],
        (" Human: Why? Assistant:", " Because.", None),
    ),
    "deepspeed-chat-qag-jaquad": (
        [{"answers": ["x", "y"], "questions": ["Why?", "Who?"], "paragraph": "Because.", "questions_answers": "qa"}],
        (" Human: Why? Assistant:", " Because.", None),
    ),
    "rm-static": ([STATIC], ("\n\nHuman: Why?\n\nAssistant:", " Because.", " No.")),
    "hh-rlhf": ([HH], HH_TEXTS),
    "hh-rlhf-helpful": ([HH], HH_TEXTS),
    "hh-rlhf-harmless": ([HH], HH_TEXTS),
    "hh-rlhf-online": ([HH], HH_TEXTS),
    "hh-rlhf-rejection-sampled": ([HH], HH_TEXTS),
    "ultrafeedback": (
        [{
            "prompt": "Why?", "prompt_id": "f0", "chosen": talk("Why?", "Because."), "rejected": talk("Why?", "No."),
            "messages": talk("Why?", "Because."), "score_chosen": 8.0, "score_rejected": 6.0,
        }],
        CONVERSATION_TEXTS,
    ),
    "ultrafeedback-raw": (
        [{
            "source": "sharegpt", "instruction": "Why?", "models": ["m", "n"], "correct_answers": ["None"],
            "incorrect_answers": ["None"],
            "completions": [
                completion("No.", "1", "2", "5", "1"), completion("Unrated.", "5", "N/A", "5", "5"),
                completion("Because.", "5", "5", "5", "4"),
            ],
        }],
        CONVERSATION_TEXTS,
    ),
    "tldr": ([{"prompt": POST_TEXTS, "chosen": " Because.", "rejected": " No."}], (POST_TEXTS, " Because.", " No.")),
    "tldr-sft": ([{"prompt": POST_TEXTS, "completion": " Because."}], (POST_TEXTS, " Because.", None)),
    "tldr-preference": (
        [
            {"info": POST | {"post": None, "article": "News"}, "summaries": SUMMARIES, "choice": 0, "worker": "w",
             "batch": "cnndm0", "split": "valid1", "extra": {"confidence": 5}},
            {"info": POST, "summaries": SUMMARIES, "choice": 1, "worker": "w", "batch": "batch3", "split": "train",
             "extra": {"confidence": None}},
        ],
        (POST_TEXTS, " Because.", " No."),
    ),
    "helpsteer2": (
        [{
            "split": "train", "prompt": "Why?", "response_1": "No.", "response_2": "Because.", "preference_strength": 2,
            "preference_statement": "Better.", "preference_elaboration": "It says why.",
            "three_most_similar_preferences": [], "all_preferences_unprocessed": [],
        }],
        CONVERSATION_TEXTS,
    ),
    "helpsteer3": (
        [{
            "domain": "general", "language": "english", "context": talk("Why?"), "response1": "Because.",
            "response2": "No.", "overall_preference": -2,
            "individual_preference": [{"score": -2, "reasoning": "r", "feedback1": "f", "feedback2": "g"}],
        }],
        CONVERSATION_TEXTS,
    ),
    "tulu3-preference": (
        [{"id": "i", "prompt": "Why?", "chosen": talk("Why?", "Because."), "rejected": talk("Why?", "No."), "source": "s"}],
        CONVERSATION_TEXTS,
    ),
    "skywork-v0.2": (
        [{"chosen": talk("Why?", "Because."), "rejected": talk("Why?", "No."), "source": "magpie"}], CONVERSATION_TEXTS
    ),
    "nectar": (
        [{
            "prompt": "\n\nHuman: Why?\n\nAssistant: ", "turns": 1, "num_responses": 2, "source": ["lmsys"],
            "good_natured": True,
            "answers": [
                {"answer": "No.", "model": "m", "rank": 2.0}, {"answer": "Because.", "model": "n", "rank": 1.0},
            ],
        }],
        CONVERSATION_TEXTS,
    ),
    "shp": ([SHP], CONVERSATION_TEXTS),
    "pku-saferlhf": (
        [{
            "prompt": "Why?", "response_0": "No.", "response_1": "Because.", "prompt_source": "s",
            "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 0,
        }],
        CONVERSATION_TEXTS,
    ),
    "oasst1": (TREE, CONVERSATION_TEXTS),
    "oasst2": (TREE, CONVERSATION_TEXTS),
    "dolly": (
        [{"instruction": "Why?", "context": "It is.", "response": "Because.", "category": "closed_qa"}],
        ("### Instruction:\nWhy?\n\nInput:\nIt is.\n\n### Response:", " Because.", None),
    ),
    "alpaca": (
        [{"instruction": "Why?", "input": "It is.", "output": "Because.", "text": "Below is an instruction"}],
        ("### Instruction:\nWhy?\n\nIt is.\n\n### Response:", " Because.", None),
    ),
    "gsm8k": (
        [{"question": "Why?", "answer": "3 * 400 = <<3*400=1200>>1200\n#### 1,200"}],
        ("Human: Why?\n\nAssistant:", " 3 * 400 = <<3*400=1200>>1200\n#### 1,200", None),
    ),
    "math": (
        [{"problem": "Why?", "level": "Level 5", "type": "Algebra", "solution": "So $\\boxed{1,200}$."}],
        ("Human: Why?\n\nAssistant:", " So $\\boxed{1,200}$.", None),
    ),
}  # fmt: skip
