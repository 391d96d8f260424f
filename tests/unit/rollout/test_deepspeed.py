"""DeepSpeed's own hybrid engine: refused where it cannot serve, with the reason. It needs a GPU and a release of DeepSpeed
that serves the installed transformers; neither is here, so an engine without kernels is played by a stand-in."""

from types import SimpleNamespace

import pytest
from support.tiny_models import generate, policy_engine, prompts, random_numbers

from rlhf.catalog import sampler
from rlhf.config.checks import check
from rlhf.config.errors import ConfigError
from rlhf.engine.zero import check_kernels
from rlhf.runtime.ds_config import hybrid_settings

GPU = "rollout=deepspeed", "hardware=h100"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("rollout=deepspeed",), "kernels for GPUs only"),
        ((*GPU, "model=llama-tiny"), "does not serve a llama"),
        ((*GPU, "lora=r8"), "does not give them back"),
        (GPU, "wants the key-value cache of transformers 4"),
    ],
)
def test_what_it_cannot_serve_is_refused_in_a_line(make_config, monkeypatch, options, reason):
    monkeypatch.setattr(sampler, "NO_CACHE", sampler.parse_release("deepspeed"))
    with pytest.raises(ConfigError, match=f"^rollout.engine=deepspeed: .*{reason}.*; try rollout=hybrid$"):
        check(make_config(*options))


def test_a_release_that_may_serve_it_is_let_try(make_config, monkeypatch):
    monkeypatch.setattr(sampler, "NO_CACHE", (0, 0))
    check(make_config(*GPU))
    settings = hybrid_settings(make_config(*GPU, "rollout.max_new_tokens=48", "rollout.release_cache=true"))[
        "hybrid_engine"
    ]
    told = {"enabled": True, "max_out_tokens": 64 + 48, "release_inference_cache": True, "pin_parameters": True}
    assert settings == told
    assert not hybrid_settings(make_config(*GPU, "rollout.gather=layers"))["hybrid_engine"]["pin_parameters"]


def test_an_engine_without_kernels_is_not_taken_for_one():
    check_kernels(SimpleNamespace(_inference_containers=["a layer"]))
    with pytest.raises(ConfigError, match=r"^rollout.engine=deepspeed: .* no kernels .*; try rollout=hybrid$"):
        check_kernels(SimpleNamespace(_inference_containers=[]))


def test_an_actor_that_was_made_for_other_rollouts_is_refused_and_the_reference_samples_plainly(make_config, tokenizer):
    config = make_config("rollout.max_new_tokens=4")
    config.rollout.engine = "deepspeed"
    engine, batch = policy_engine(config, tokenizer), prompts(config, tokenizer)
    assert generate(engine, batch, random_numbers(config, 3), tokenizer, config.rollout).lengths.min() > 0
    engine.module.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"^rollout.engine=deepspeed: .* made without"):
        generate(engine, batch, random_numbers(config, 3), tokenizer, config.rollout)
