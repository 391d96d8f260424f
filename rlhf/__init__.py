"""RLHF research sweeps: supervised fine-tuning, reward modelling and PPO as stages that are trained once and shared."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.cli.prepare import load_config as load_config
    from rlhf.ppo.engine import DeepSpeedRLHFEngine as DeepSpeedRLHFEngine
    from rlhf.ppo.trainer import DeepSpeedPPOTrainer as DeepSpeedPPOTrainer

__version__ = "0.1.0"
__all__ = ["DeepSpeedPPOTrainer", "DeepSpeedRLHFEngine", "load_config"]


def __getattr__(name: str) -> Any:
    """Load what users build on when it is asked for: `import rlhf` alone needs no torch."""
    if name == "DeepSpeedRLHFEngine":
        from rlhf.ppo.engine import DeepSpeedRLHFEngine

        return DeepSpeedRLHFEngine
    if name == "DeepSpeedPPOTrainer":
        from rlhf.ppo.trainer import DeepSpeedPPOTrainer

        return DeepSpeedPPOTrainer
    if name == "load_config":
        from rlhf.cli.prepare import load_config

        return load_config
    raise AttributeError(f"module 'rlhf' has no attribute {name!r}")
