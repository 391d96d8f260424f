"""How what stages measure is laid out for people."""

from rlhf.catalog.display import share_columns
from rlhf.catalog.metric import Metric


def test_stages_share_the_columns_of_a_metric_unless_a_point_has_it_of_both():
    gold, memory = Metric("eval/gold", "", ""), Metric("memory/peak_gib", "", "")
    measured = [("sft", memory), ("ppo", gold), ("ppo", memory), ("dpo", gold)]
    points = [{"sft": {memory.name}, "ppo": {gold.name, memory.name}}, {"sft": {memory.name}, "dpo": {gold.name}}]
    assert share_columns(measured, points) == [(("sft",), memory), (("ppo",), memory), (("ppo", "dpo"), gold)]
    both = [*points, {"ppo": {gold.name}, "dpo": {gold.name}}]
    assert (("ppo",), gold) in share_columns(measured, both)
