"""A GPU's free memory, room for captured graphs, and what is said before a minute's wait."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from support.gpusim import CUDA, SimulatedGPU, needs_gpusim
from support.simulated_rollouts import SMALL, ragged_prompts, sharp_policy, simulated_engine

from rlhf.rollout import create_sampler
from rlhf.rollout.hybrid.cache import SlotCache
from rlhf.rollout.hybrid.decoder import make_room_for_graph
from rlhf.runtime.compat.deepspeed import is_compiled
from rlhf.runtime.device import free_bytes


@needs_gpusim
def test_memory_of_captured_graphs_is_not_free():
    def segment(pool, total, active, device=0):
        return {"device": device, "segment_pool_id": pool, "total_size": total, "active_size": active}

    segments = [segment((0, 0), 100, 30), segment((0, 0), 50, 50), segment((0, 1), 1000, 10), segment((0, 0), 700, 0, 1)]
    with SimulatedGPU(memory=500), mock.patch.object(torch.cuda, "memory_snapshot", lambda: segments):
        assert free_bytes(CUDA) == 500 + 70


@needs_gpusim
def test_graphs_outlive_those_of_another_sampler_and_streams_are_used_again(make_config, tokenizer):
    fixed = "rollout.max_new_tokens=4", "rollout.fixed_length=true"
    config = make_config("model=opt-tiny", "precision=bf16", *fixed, *SMALL)
    with SimulatedGPU() as gpu:
        engine = simulated_engine(sharp_policy(config, tokenizer))
        given = ragged_prompts(config.rollout, (5, 3))
        kept = create_sampler(engine, tokenizer, config.rollout)
        kept.generate(*given)
        for _ in range(2):
            other = create_sampler(engine, tokenizer, replace(config.rollout, do_sample=False))
            other.generate(*given)
            other.release()
        kept.generate(*given)
        assert [graph.is_stale for graph in gpu.graphs] == [False, True, True]
        assert gpu.graphs[0].replays == 5 and gpu.graphs[1].stream == gpu.graphs[2].stream


@needs_gpusim
def test_after_a_capture_that_fails_all_steps_are_captured_anew(make_config, tokenizer, monkeypatch):
    fixed = "rollout.max_new_tokens=4", "rollout.fixed_length=true"
    config = make_config("model=opt-tiny", "precision=bf16", *fixed, *SMALL)
    with SimulatedGPU() as gpu:
        sampler = create_sampler(simulated_engine(sharp_policy(config, tokenizer)), tokenizer, config.rollout)
        larger, smaller = ragged_prompts(config.rollout, (5, 3, 4)), ragged_prompts(config.rollout, (5, 3))
        expected = sampler.generate(*larger).tokens.cpu()

        plain = SlotCache.shown

        def fail_in_capture(*given):
            if gpu.capturing:
                raise torch.OutOfMemoryError
            return plain(*given)

        with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
            patch.setattr(SlotCache, "shown", fail_in_capture)
            sampler.generate(*smaller)
        assert torch.equal(sampler.generate(*larger).tokens.cpu(), expected)
        assert [graph.is_stale for graph in gpu.graphs] == [True, True, False]


@needs_gpusim
def test_captures_empty_no_cache_and_end_with_the_second_rollout(make_config, tokenizer):
    config = make_config("model=opt-tiny", "precision=bf16", "rollout.max_new_tokens=20", *SMALL)
    with SimulatedGPU() as gpu:
        sampler = create_sampler(simulated_engine(sharp_policy(config, tokenizer)), tokenizer, config.rollout)
        captured = []
        for _ in range(3):  # of eight rows three go on after a while, then two
            sampler.generate(*ragged_prompts(config.rollout, (9, 8, 7, 6, 5, 4, 3, 2), limits=[20, 20, 12, 4, 4, 4, 4, 4]))
            captured.append(len(gpu.graphs))
        assert captured[0] > 1 and captured[1] == captured[2] and gpu.emptied == 0


@needs_gpusim
@pytest.mark.parametrize(("free", "emptied"), [(50, 0), (5, 1)])
def test_unused_memory_goes_back_before_a_capture_where_little_is_free(free, emptied):
    with SimulatedGPU() as gpu, mock.patch.object(torch.cuda, "mem_get_info", lambda device: (free, 100)):
        make_room_for_graph(CUDA)
        assert gpu.emptied == emptied


def test_an_operator_of_deepspeed_is_known_to_be_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not is_compiled("cpu_adam")
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    assert is_compiled("cpu_adam")
