"""Whole weights for a rollout, on a single rank too."""

import pytest
from support.rollout_compare import disagreements
from support.tiny_models import generate

from rlhf.cli.prepare import load_config
from rlhf.runtime.seeds import uniforms
from rlhf.stages.bench.rounds import random_models

pytestmark = pytest.mark.rounding


@pytest.mark.parametrize("gather", ["all", "layers"])
def test_one_rank_at_stage_3_has_no_whole_layers_either(tmp_path, gather):
    """Adapters were merged there into weights that were not at hand."""
    config = load_config(
        "+experiments=bench", "zero=3", "zero.stage3_param_persistence_threshold=0", "lora=r8", f"rollout.gather={gather}",
        "data.max_prompt_tokens=12", "rollout.max_new_tokens=6", "ppo.rollout_batch_size=4", "ppo.batch_size=4",
    )  # fmt: skip
    with random_models(config, tmp_path / "random") as models:
        for name, parameter in models.engine.actor.module.named_parameters():
            if "lora_B" in name:
                parameter.ds_tensor.normal_(std=0.1)  # adapters that change what is drawn
        draws = uniforms(0, "test", 0, models.prompts.samples, 6)
        found = []
        for engine in ("hf", "hybrid", "hybrid"):
            config.rollout.engine = engine
            found.append(generate(models.engine.actor, models.prompts, draws, models.tokenizer, config.rollout))
        given = models.engine.actor, models.prompts, draws
        for other in found[1:]:
            assert disagreements(*given, other, found[0], config.rollout, models.tokenizer.eos_token_id) == []
