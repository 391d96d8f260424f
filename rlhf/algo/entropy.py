"""The weight of the entropy bonus: fixed, or steered to a target."""


class EntropyBonus:
    """The weight of the policy's entropy in its loss.

    With a `target` the weight changes by `step` after each rollout, up where the entropy was below the target and down to 0
    where it was above, and no bonus is given after a rollout whose entropy was above it (arXiv 2505.22312, section 4.2).
    """

    def __init__(self, coef: float, target: float | None, step: float) -> None:
        self.coef, self.target, self.step = coef, target, step
        self.is_active = True

    @property
    def weight(self) -> float:
        """The weight of the next updates."""
        return self.coef if self.is_active else 0.0

    def update(self, entropy: float) -> None:
        """Learn the entropy per token of a rollout's updates, in nats."""
        if self.target is None:
            return
        self.is_active = entropy <= self.target
        self.coef = max(0.0, self.coef + (self.step if self.is_active else -self.step))

    def state_dict(self) -> dict[str, float]:
        """Return what changes."""
        return {"coef": self.coef, "active": float(self.is_active)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore it."""
        self.coef, self.is_active = state["coef"], bool(state["active"])
