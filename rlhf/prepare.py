"""From a composed configuration to one that can run: shapes read where none is stated, everything checked."""

from rlhf.config.checks import check
from rlhf.config.compose import composed
from rlhf.config.schema import Config
from rlhf.data.text import load_texts
from rlhf.experiment.graph import Node
from rlhf.models.source import Source, check_source, fill_shapes, source_of


def load_config(*overrides: str) -> Config:
    """The configuration that `python -m rlhf <overrides>` runs: `args` for use from Python. Raises ConfigError."""
    return prepared(composed(*overrides))


def prepared(config: Config) -> Config:
    """The configuration with the shapes of its models, checked."""
    whole = fill_shapes(config)
    check(whole)
    return whole


def check_sources(config: Config, planned: list[Node]) -> None:
    """Look at what stages which are not done will load beside the data set, before the first one starts: models (within
    seconds, without reading weights) and the texts of the pre-training loss."""
    waiting = {node.stage for node in planned if not node.directory.done}
    if "sft" in waiting and config.model.path is not None:
        check_source(source_of(config.model, "model"), config, scorer=False, declared=config.model)
    if "reward" in waiting and config.reward_model.path is not None:
        check_source(source_of(config.reward_model, "reward_model"), config, scorer=False, declared=config.reward_model)
    if "ppo" in waiting:
        if config.ppo.ptx_coef > 0 and config.ppo.ptx.source != "demonstrations":
            load_texts(config.ppo.ptx, config.data.prompt_format, [])
        (node,) = (node for node in planned if node.stage == "ppo")
        given = {"actor": config.ppo.actor is not None, "reward": config.ppo.reward is not None, "critic": True}
        for key, place in node.inputs.items():
            if given[key]:
                model = config.model if key == "actor" else config.reward_model
                source = Source(place, f"ppo.{key}", trust_remote_code=model.trust_remote_code)
                check_source(source, config, scorer=key != "actor")
