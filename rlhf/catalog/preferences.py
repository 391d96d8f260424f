"""What the losses on pairs compare, by name (rlhf/algo/dpo.py has their formulas). Nothing here imports torch."""

from rlhf.config.schema import Dpo

# What each loss multiplies by beta: sums or means over a response's tokens of its log-ratio to the reference, or, without a
# reference, of its log-probability; or its log-odds.
COMPARED = {
    "dpo": "log-ratios",
    "cdpo": "log-ratios",
    "robust": "log-ratios",
    "ipo": "mean log-ratios",
    "hinge": "log-ratios",
    "dpo_norm": "mean log-ratios",
    "kto": "log-ratios",
    "simpo": "mean log-probabilities",
    "orpo": "log-odds",
    "cpo": "log-probabilities",
}
WITH_REFERENCE = frozenset({"log-ratios", "mean log-ratios"})


def compared_by(loss: str, config: Dpo) -> str:
    """Return what a loss multiplies by beta."""
    return "log-ratios" if loss == "ipo" and config.ipo_sums else COMPARED[loss]


def has_reference(config: Dpo) -> bool:
    """Whether the loss compares the policy with the one that it starts from."""
    return compared_by(config.loss, config) in WITH_REFERENCE


def weigh_losses(config: Dpo) -> dict[str, float]:
    """Return the losses that are summed, with their weights."""
    return {config.loss: 1.0, **(config.mix or {})}


def needs_mismatched(config: Dpo) -> bool:
    """Whether a loss estimates the KL to the reference from responses to other prompts."""
    return "kto" in weigh_losses(config)
