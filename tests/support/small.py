"""Overrides that make stages small enough for a test. A later override of the same key wins, so a test adds its own after
these."""

# Step 3: two rollouts of 8 short responses, two mini-batches each.
SMALL_PPO = (
    "ppo.rollout_batch_size=8", "ppo.batch_size=4", "ppo.update_epochs=1", "ppo.max_steps=2", "rollout.max_new_tokens=8",
)  # fmt: skip

# The demo data set, with as few records as every stage can do with.
SMALL_DEMO = (
    "data.demo.demonstrations=280", "data.demo.rounds=1", "data.demo.heldout_prompts=8", "data.demo.answers_per_prompt=2",
)  # fmt: skip

# All three stages, in seconds.
SMALL_STAGES = (*SMALL_DEMO, "sft.max_steps=2", "reward.max_steps=2", *SMALL_PPO)

# What a benchmark measures.
SMALL_BENCH = (
    "+experiments=bench", "data.max_prompt_tokens=20", "data.max_response_tokens=8", "rollout.max_new_tokens=8",
    "ppo.rollout_batch_size=4", "ppo.batch_size=4", "sft.batch_size=4", "reward.batch_size=4", "bench.repeats=2",
)  # fmt: skip
