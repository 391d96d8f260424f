"""Under ZeRO stage 3 no rank holds a whole model, neither while it is loaded nor while it is trained or saved: peak
resident memory of two ranks, against stage 0. Started as a script this file is one rank."""

import json
import os
import sys
from pathlib import Path

import pytest
from support.ranks import run_new_processes

pytestmark = pytest.mark.slow
MIB = 2**20
# 50.9 million parameters in float32, of which no single one is large: 194 MiB.
SHAPE = (
    "model=opt-tiny", "model.hidden_size=640", "model.num_attention_heads=10", "model.head_dim=64",
    "model.intermediate_size=2560", "model.num_hidden_layers=10",
    "model.vocab_size=2048", "data.tokenizer_vocab_size=768",
    "zero.reduce_bucket_size=1000000", "zero.stage3_max_live_parameters=4000000",
    "zero.stage3_param_persistence_threshold=1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    run_new_processes(__file__, 1, "save", str(place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # what is freed goes back at once
        return {
            zero: [json.loads(output.splitlines()[-1]) for output in run_new_processes(__file__, 2, zero, str(place))]
            for zero in ("0", "3")
        }


def test_a_rank_of_stage_3_never_holds_the_model_it_loads(measured):
    model = measured["0"][0]["model"]
    assert model > 190
    for sharded in measured["3"]:
        assert sharded["loaded"] < 0.75 * model, measured


def test_a_rank_of_stage_3_trains_in_less_memory(measured):
    for whole, sharded in zip(measured["0"], measured["3"], strict=True):
        assert whole["trained"] > 3.9 * whole["model"]  # weights, gradients, two moments
        # Half of: weights, gradients, two moments, and a master copy that DeepSpeed keeps in float32 too. All of the
        # weights at once would be half a model more.
        assert sharded["trained"] < 3.3 * sharded["model"], measured


def test_saving_needs_no_second_copy(measured):
    for ranks in measured.values():
        for rank in ranks:
            assert rank["saved"] - rank["trained"] < 0.2 * rank["model"], measured


def test_what_stage_3_saves_is_what_it_loaded(measured):
    assert all(rank["same"] for ranks in measured.values() for rank in ranks)


def memory(name):
    """This process's resident memory now (VmRSS) or at most since it was last reset (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def reset_peak():
    """Let VmHWM start again from now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(zero, place):
    """Save a random model, or load it, train it for two steps and save it, and print what that took beyond the imports."""
    import torch
    from safetensors.torch import load_file

    from rlhf.config.derive import Batches
    from rlhf.config.points import compose_config
    from rlhf.data.tokenized import DataSource
    from rlhf.engine.save import save_model
    from rlhf.engine.step import optimizer_step
    from rlhf.engine.zero import TrainingSpec, backward, set_rates, training_engine
    from rlhf.models.heads import model_inputs
    from rlhf.models.load import load_policy, new_policy
    from rlhf.models.source import Source
    from rlhf.models.tokenizer import build_tokenizer
    from rlhf.runtime.distributed import start

    stage = "0" if zero == "save" else zero
    config = compose_config(*SHAPE, f"zero='{stage}'", f"hardware.gpus_per_node={1 if zero == 'save' else 2}")
    start(config)
    tokenizer = build_tokenizer(config.model, "model", DataSource(config))
    if zero == "save":
        new_policy(config.model, config, tokenizer, config.zero, 0.0).save_pretrained(place)
        return
    ids = torch.randint(2, 700, (2, 8), generator=torch.Generator().manual_seed(0))
    small = training_engine(torch.nn.Linear(2, 1), config, learning(config, TrainingSpec, Batches))
    backward(small, small(torch.ones(1, 2)).sum(), 1.0)
    optimizer_step(small)  # what DeepSpeed allocates once
    base = memory("VmRSS")
    reset_peak()
    policy = load_policy(Source(place, "model.path"), config, config.zero, 0.0)
    loaded = memory("VmHWM") - base
    engine = training_engine(policy, config, learning(config, TrainingSpec, Batches))
    model = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters()) * 4 / MIB
    for _ in range(2):
        set_rates(engine, 0.0)  # AdamW's moments, but the same weights
        backward(engine, engine(**model_inputs(engine, ids, torch.ones_like(ids))).logits.logsumexp(-1).sum(), 1.0)
        optimizer_step(engine)
    trained = memory("VmHWM") - base
    again = Path(place) / f"again-{zero}"
    save_model(engine, tokenizer, config.lora, again, "")
    saved = memory("VmHWM") - base
    same = True
    if engine.global_rank == 0:
        first, other = (load_file(directory / "model.safetensors") for directory in (Path(place), again))
        same = set(first) == set(other) and all(torch.equal(weight, other[name]) for name, weight in first.items())
    print(json.dumps({"model": model, "loaded": loaded, "trained": trained, "saved": saved, "same": same}))


def learning(config, learning_class, batches_class):
    """One sequence a rank, AdamW."""
    plan = batches_class(ranks=2, per_rank=1, micro=1, accumulation=1)
    return learning_class(config.sft, plan, config.zero, config.lora, 1e-3, 0.0, False)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
