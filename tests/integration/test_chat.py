"""The demo as chat, end to end: conversations of two turns through all three stages, on the command line."""

import json

import pytest
from support.command import run_rlhf
from support.small import SMALL_STAGES
from transformers import AutoModelForCausalLM, AutoTokenizer

CHAT = ("data=demo", "data.template=chat", "data.demo.turns=2", "sft.loss_on=assistant")


@pytest.mark.slow
def test_conversations_go_through_all_stages(tmp_path):
    done = run_rlhf(*CHAT, *SMALL_STAGES, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = {place.name.split("-")[0]: place for place in (tmp_path / "outputs" / "stages").iterdir()}
    assert set(stages) == {"sft", "reward", "ppo"}
    samples = [json.loads(line) for line in (stages["ppo"] / "samples.jsonl").read_text().splitlines()]
    assert all(sample["prompt"].count("<|user|>") == 2 and sample["prompt"].endswith("<|assistant|>") for sample in samples)
    saved = stages["ppo"] / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(saved), AutoModelForCausalLM.from_pretrained(saved)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], add_generation_prompt=True, tokenize=False)
    assert asked == "<|user|>Why?<|end|><|assistant|>"
    assert tokenizer.convert_tokens_to_ids("<|end|>") in model.generation_config.eos_token_id
    again = run_rlhf(*CHAT, *SMALL_STAGES, cwd=tmp_path)  # all stages are found by their fingerprints
    assert again.returncode == 0 and len(list((tmp_path / "outputs" / "stages").iterdir())) == 3
