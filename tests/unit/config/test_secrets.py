"""Secrets are found by name and by form, and nothing else is taken for one."""

import time
from dataclasses import asdict

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf.catalog.stage import stage_kinds
from rlhf.config.secrets import MASK, is_secret_name, mask, mask_values, secret_keys

HF = "hf_" + "aB3dE6gH9jK2mN5pQ8sT"
WANDB = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"export HF_TOKEN={HF}", HF),
        ("export HF_TOKEN=short", "short"),
        ("launcher.setup=[export HF_TOKEN=hf_x1,module load cuda]", "hf_x1"),
        ("launcher.setup=['export DB_PASSWORD=\"a b\"']", "a b"),
        ("AWS_SECRET_ACCESS_KEY = wJalrXUtnFEMI", "wJalrXUtnFEMI"),
        ("aws configure set aws_access_key_id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        (f"WANDB_API_KEY={WANDB} python x.py", WANDB),
        (f"wandb login --relogin {WANDB}", WANDB),
        ("curl -H 'Authorization: Bearer abc.def'", "abc.def"),
        ("pip install https://user:pa55@host/simple", "pa55"),
        ("git clone https://ghp_abcdefghij0123456789@github.com/a/b", "ghp_abcdefghij0123456789"),
        ("huggingface-cli login --token abcdef", "abcdef"),
        ("OPENAI=sk-proj-abcdefghij0123456789", "sk-proj-abcdefghij0123456789"),
        ("+tracking.wandb.api_key=abc", "abc"),
        ("PGPASSWORD=x1 psql", "x1"),
        ('{"credential": "a\\"b", "x": 1}', 'a\\"b'),
        ("a:\n  - password: hunter2\n", "hunter2"),
        ("apiKey: hunter2", "hunter2"),
    ],
)
def test_a_secret_is_masked_and_nothing_else(text, secret):
    assert mask(text) == text.replace(secret, MASK)
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "rollout.max_new_tokens=24",
        "data.max_prompt_tokens=64",
        "data.tokenizer_vocab_size=512",
        "tokenizer: gpt2",
        "lora.target_modules=[q_proj,k_proj]",
        "pad_token=<pad>",
        "eos_token: </s>",
        f"model.revision={WANDB}",
        "HF_TOKEN=$HF_TOKEN",
        "export HF_TOKEN=$(cat ~/.hf)",
        "HF_TOKEN_PATH=/home/me/token",
        "export PWD=/scratch",
        "password: null",
        "token=",
        "invalid JSON, unexpected token: }",
        "outputs/runs/task-1234567890-abcdefghij/model",
        "ssh://git@github.com/a/b",
        "https://example.com:8080/a@b",
        "sweep.objective=kl/token",
        "hf_hub_download",
        "ppo.kl_coef=0.1 seed=1",
        "if token == end",
        "prompt_format={prompt}: secret",
    ],
)
def test_what_is_none_keeps_its_value(text):
    assert mask(text) == text


def test_values_are_masked_by_their_keys():
    values = {
        "password": "x",
        "tokens": "x",
        "max_new_tokens": 3,
        "api_key": None,
        "list": ["HF_TOKEN=x"],
        "a": {"secret": "$X"},
    }
    expected = values | {"password": MASK, "list": [f"HF_TOKEN={MASK}"]}
    assert mask_values(values) == expected
    assert secret_keys({"launcher": values}) == ["launcher.password", "launcher.list"]


def test_no_key_or_value_of_the_configuration_is_taken_for_a_secret(make_config):
    for overrides in (
        (),
        ("launcher=slurm", "tracking=wandb", "lora=r8", "data=files"),
        ("model=opt-13b", "hardware=dgx8"),
    ):
        config = asdict(make_config(*overrides))
        assert secret_keys(config) == []
        text = yaml.safe_dump(config)
        assert mask(text) == text
    assert not any(is_secret_name(key) for kind in stage_kinds().values() for key in kind.result_keys)


@given(st.text())
def test_masking_never_fails_and_is_stable(text):
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize("part", ["token=", "https://", "a", "- ", "'", "password: '", "a://b:", "--token "])
def test_masking_is_linear(part):
    start = time.process_time()
    mask(part * (100_000 // len(part)))
    assert time.process_time() - start < 1.0
