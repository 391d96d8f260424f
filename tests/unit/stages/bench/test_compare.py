"""Variants in turns: the order, what is told, and what one that cannot go on costs the others."""

from contextlib import contextmanager

import pytest
import torch

from rlhf.config.errors import ConfigError
from rlhf.stages.bench.compare import compare, medians

REFUSAL = ConfigError("rollout.engine", "paged", "it does not serve gptj", "try rollout=hybrid")


class Bench:
    """Stands in for models: `act(variant, number)` is a round; notes all rounds, and how often models are made and
    freed."""

    def __init__(self, act=lambda name, number: float(number)):
        self.act, self.turns, self.made, self.freed = act, [], 0, 0

    def round(self, config, models):
        number = sum(turn == (models, config.name) for turn in self.turns)
        self.turns.append((models, config.name))
        return {"time/step_s": self.act(config.name, number)}

    @contextmanager
    def build(self):
        self.made += 1
        try:
            models = self.made
            yield lambda config: lambda: self.round(config, models)
        finally:
            self.freed += 1


@pytest.fixture
def configs(make_config, set_key):
    return {name: set_key(make_config("stage=bench"), "name", name) for name in ("baseline", "hybrid", "paged")}


def test_variants_take_turns_and_the_first_round_warms_up(configs):
    bench = Bench(lambda name, number: 100.0 if number == 0 else {1: 4.0, 2: 1.0, 3: 2.0}[number])
    found = compare(configs, bench.build, 3)
    assert [name for _, name in bench.turns] == [*configs] * 4
    assert (bench.made, bench.freed) == (1, 1)
    for measured in found.values():
        assert [figures["time/step_s"] for figures in measured.rounds] == [4.0, 1.0, 2.0]
        assert measured.median["time/step_s"] == 2.0
        assert measured.median["memory/peak_gib"] > 0


def test_one_that_runs_out_of_memory_is_told_and_the_others_begin_anew(configs):
    def act(name, number):
        if name == "hybrid" and number == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    bench = Bench(act)
    found = compare(configs, bench.build, 2)
    assert (found["hybrid"].problem, found["hybrid"].rounds) == ("out of memory", [])
    assert [len(found[name].rounds) for name in ("baseline", "paged")] == [2, 2]
    assert list(found) == list(configs)
    assert (bench.made, bench.freed) == (2, 2)  # the first models may be in the middle of an update
    assert {name for models, name in bench.turns if models == 2} == {"baseline", "paged"}


def test_if_all_run_out_of_memory_all_say_so(configs):
    def act(name, number):
        raise torch.OutOfMemoryError

    found = compare(configs, Bench(act).build, 2)
    assert {measured.problem for measured in found.values()} == {"out of memory"}


@pytest.mark.parametrize("optional", [(), ("paged",)])
def test_an_engine_that_cannot_serve_the_model_is_refused_or_left_out(configs, optional):
    def act(name, number):
        if name == "paged":
            raise REFUSAL
        return 1.0

    bench = Bench(act)
    if not optional:
        with pytest.raises(ConfigError, match=r"^rollout\.engine=paged: "):
            compare(configs, bench.build, 2)
    else:
        found = compare(configs, bench.build, 2, optional)
        assert found["paged"].refused and found["paged"].problem == str(REFUSAL)
        assert len(found["hybrid"].rounds) == 2 and not found["hybrid"].refused
    assert bench.made == bench.freed


def test_models_that_do_not_fit_are_an_error_of_the_user(configs):
    @contextmanager
    def build():
        raise torch.OutOfMemoryError
        yield

    with pytest.raises(ConfigError, match=r"^model=opt-tiny: .*memory; try zero=3-offload"):
        compare(configs, build, 2)


def test_medians_are_over_the_rounds_that_have_a_figure():
    assert medians([{"a": 1.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}
