"""A judge is refused where nothing would ask it."""

import pytest

from rlhf.config.errors import ConfigError

JUDGE = ("evaluate.judge.url=http://127.0.0.1:9/v1", "evaluate.judge.model=m")


def test_a_stage_that_evaluates_the_policy_of_its_own_graph_has_no_judge(load_config):
    with pytest.raises(ConfigError, match="give it to `python -m rlhf evaluate DIR DIR`") as refused:
        load_config("stages=[sft,evaluate]", *JUDGE)
    assert refused.value.key == "evaluate.judge.url"
