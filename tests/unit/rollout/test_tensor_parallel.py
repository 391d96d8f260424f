"""Two ranks that share a model's layers sample what one would. Started as a script this file is one rank."""

import json
import os
import re
import sys
from dataclasses import replace

import pytest
from support.ranks import run_script

from rlhf.catalog.families import FAMILIES
from rlhf.config.checks import check
from rlhf.config.errors import ConfigError

pytestmark = pytest.mark.rounding

# No choice of a token is as near to another one as this, ten times what rounding moves.
BOUNDARY = 1e-6
PAIR = "zero='3'", "hardware.gpus_per_node=2", "rollout.tensor_parallel=2"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (("zero='2'",), "rollout.tensor_parallel=2: at ZeRO stage 2 "),
        (("rollout=hf",), "rollout.tensor_parallel=2: rollout=hf "),
        (("rollout.tensor_parallel=3",), "rollout.tensor_parallel=3: it does not divide the 2 devices"),
        (("model=bloom-tiny",), "rollout.tensor_parallel=2: the layers of a bloom cannot"),
        (("model=codegen-tiny",), "rollout.tensor_parallel=2: the layers of a codegen cannot"),
        (
            ("model=llama-tiny", "model.num_key_value_heads=1"),
            "rollout.tensor_parallel=2: it does not divide model.num_key_value_heads=1",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(make_config, options, key):
    with pytest.raises(ConfigError) as error:
        check(make_config(*PAIR, *options))
    assert str(error.value).startswith(key)


SHAREABLE = [name for name, family in FAMILIES.items() if family.shareable]
ALL_TRUE = {"greedy": True, "sampled": True, "gap": True, "weights": True, "half": True}


@pytest.mark.slow
@pytest.mark.parametrize("families", [("opt",), ("gpt2", "gpt_neo")])
def test_two_ranks_sample_what_one_does_with_adapters(families):
    for told in run_script(__file__, 2, "r8", *families):
        assert json.loads(told.splitlines()[-1]) == dict.fromkeys(families, ALL_TRUE)


@pytest.mark.slow
def test_two_ranks_sample_what_one_does():
    for told in run_script(__file__, 2, "none", *SHAREABLE):
        assert json.loads(told.splitlines()[-1]) == dict.fromkeys(SHAREABLE, ALL_TRUE)


def in_blocks(model):
    """Elements of the matrices of a model's blocks, adapters left out."""
    return sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for name, parameter in model.named_parameters()
        if re.search(r"\.\d+\.", name) and ".lora_" not in name and len(getattr(parameter, "ds_shape", parameter.shape)) > 1
    )


def main(lora, *families):
    """Rank by rank: for each family, greedy and sampled tokens against plain generate's on the sharded weights; where a
    family's layers have windows, they are shorter than the sequences."""
    import numpy as np
    import torch
    from support.rollout_compare import distances
    from support.tiny_models import generate, learning_engine, prompts, sample

    from rlhf.catalog.families import gemma2, gpt_neo
    from rlhf.config.points import compose_config
    from rlhf.data.tokenized import DataSource
    from rlhf.models.lora import base_model
    from rlhf.models.tokenizer import build_tokenizer
    from rlhf.rollout import create_sampler
    from rlhf.runtime.compat.deepspeed import local_shard
    from rlhf.runtime.distributed import rank, start

    found = {}
    gpt_neo.WINDOW = gemma2.WINDOW = 8
    for family in families:
        config = compose_config(
            *PAIR, f"model={family.replace('_', '-')}-tiny", "zero.stage3_param_persistence_threshold=0", f"lora={lora}",
            "rollout.max_new_tokens=10",
        )  # fmt: skip
        start(config)
        tokenizer = build_tokenizer(config.model, "model", DataSource(config))
        engine = learning_engine(config, tokenizer)
        torch.manual_seed(rank())
        with torch.no_grad():
            for name, parameter in engine.module.named_parameters():
                if "lora_B" in name:
                    local_shard(parameter).normal_(0, 0.05)
                elif len(parameter.ds_shape) > 1:
                    local_shard(parameter).mul_(3.0)
                elif "bias" in name:
                    local_shard(parameter).normal_(0, 0.3)
        before = {name: local_shard(parameter).clone() for name, parameter in engine.module.named_parameters()}
        texts = ("How do I clean a kettle?", "Can you help me choose my sofa?", "A lamp")[: 3 - rank()]
        batch, numbers = (
            prompts(config, tokenizer, texts),
            np.random.default_rng(3 + rank()).random((3, 10), dtype=np.float32),
        )
        numbers = numbers[: 3 - rank()]
        told = {}
        for name, changes in (("greedy", {"do_sample": False}), ("sampled", {})):
            rollout = replace(config.rollout, **changes)
            sampler = create_sampler(engine, tokenizer, rollout)
            together = sample(sampler, batch, numbers)
            with distances() as apart:
                plain = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf", tensor_parallel=1))
            assert min(apart) > BOUNDARY, f"{family}: draw other numbers, rounding decides a token"
            if name == "greedy":
                told[name] = torch.equal(together.tokens, plain.tokens) and torch.equal(together.lengths, plain.lengths)
                told["gap"] = torch.allclose(together.logprobs, plain.logprobs, atol=1e-4)
            else:
                whole = replace(rollout, engine="hybrid", tensor_parallel=1, gather="all")
                alone = generate(engine, batch, numbers, tokenizer, whole)
                told[name] = torch.equal(together.tokens, alone.tokens)
        told["weights"] = all(torch.equal(before[name], local_shard(p)) for name, p in engine.module.named_parameters())
        shared, whole = in_blocks(sampler.shared.module), in_blocks(base_model(engine.module))
        told["half"] = 2 * shared == whole > 0
        found[family] = told
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
