"""DeepSpeed-Chat's published times and largest models, beside which the plan is laid.

Source: applications/DeepSpeed-Chat/README.md, table 1, and blogs/deepspeed-chat/README.md, tables 1, 3 and 6. All times are
of step 3 on 264,292 prompts. The names are this project's presets.
"""

# Hours of step 3 by hardware and model.
HOURS: dict[tuple[str, str], float] = {
    ("v100-32g", "opt-1.3b"): 1.8 * 24,
    ("a6000", "opt-1.3b"): 1.1 * 24,
    ("a6000", "opt-6.7b"): 5.6 * 24,
    ("a100-40g", "opt-1.3b"): 15.4,
    ("a100-40g", "opt-6.7b"): 3.4 * 24,
    ("a100-80g", "opt-1.3b"): 11.7,
    ("a100-80g", "opt-6.7b"): 1.7 * 24,
    ("a100-80g", "opt-13b"): 4.9 * 24,
    ("dgx8", "opt-1.3b"): 2.0,
    ("dgx8", "opt-6.7b"): 5.7,
    ("dgx8", "opt-13b"): 10.8,
    ("dgx8", "opt-30b"): 1.85 * 24,
    ("dgx8-80g", "opt-1.3b"): 1.4,
    ("dgx8-80g", "opt-6.7b"): 4.1,
    ("dgx8-80g", "opt-13b"): 9.0,
    ("dgx8-80g", "opt-30b"): 18.0,
    ("dgx8-80g", "opt-66b"): 2.1 * 24,
    # Nine hours for all three steps, 82 and 5 minutes of which are the first two.
    ("dgx8-80gx8", "opt-66b"): 9.0 - 87 / 60,
}
# US dollars of step 3, where they are published.
DOLLARS: dict[tuple[str, str], float] = {
    ("dgx8-80g", "opt-1.3b"): 45,
    ("dgx8-80g", "opt-6.7b"): 132,
    ("dgx8-80g", "opt-13b"): 290,
    ("dgx8-80g", "opt-30b"): 580,
    ("dgx8-80g", "opt-66b"): 1620,
}
# The largest model that one GPU trains.
LARGEST: dict[str, str] = {"v100-32g": "opt-2.7b", "a6000": "opt-6.7b", "a100-40g": "opt-6.7b", "a100-80g": "opt-13b"}
# The published recipe.
BENCHMARK = "+experiments=deepspeed-chat-benchmark"
