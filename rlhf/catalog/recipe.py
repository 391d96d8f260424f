"""Which hyperparameters a model takes unless the user chooses others: one table, by family and size.

The values themselves, each with its source, are in conf/<group>/<option>.yaml. `DSC` is DeepSpeed-Chat, whose scripts lie
under applications/DeepSpeed-Chat/training/*/training_scripts in microsoft/DeepSpeedExamples.
"""

from dataclasses import dataclass

# Models with fewer weights are toys, on which the demo's values were tried.
TINY_PARAMETERS = 10_000_000


@dataclass(frozen=True)
class Recipe:
    """The option of each group that follows the model."""

    source: str
    sft: str
    reward: str
    ppo: str
    data: str = "rm-static"
    length: str = "deepspeed-chat"
    lora: str = "none"
    critic_lora: str = "same"
    reward_lora: str = "same"
    zero: str = "auto"
    dpo: str = "zephyr"


@dataclass(frozen=True)
class ModelFacts:
    """What the choice of a recipe depends on. `name` is the option of `model` whose shape it has, None if there is none."""

    name: str | None
    family: str
    parameters: int


def adapt_recipe(source: str, size: str, reward: str, critic: str = "none") -> Recipe:
    """Return a recipe of DSC that trains adapters of the policy."""
    name = f"deepspeed-chat-{size}"
    return Recipe(source, name, f"deepspeed-chat-{reward}", name, lora=name, critic_lora=critic, reward_lora=critic)


DEMO = Recipe("the demo's own", "demo", "demo", "demo", data="demo", length="demo", zero="0", dpo="demo")
LLAMA = "deepspeed-chat-llama-2-7b"

# The recipes of OPT and of all other families, each with the most weights that a model may have to take it. OPT's are those
# that DSC's e2e_rlhf.py runs for a size: 1.3b on one GPU, 6.7b and 13b on a node, 66b on several; 30b has its own script.
OPT_RECIPES: tuple[tuple[float, Recipe], ...] = (
    (3e9, adapt_recipe("DSC, opt/single_gpu, 1.3b", "1.3b", "1.3b")),
    (8e9, Recipe("DSC, opt/single_node, 6.7b", "deepspeed-chat-6.7b", "deepspeed-chat-13b", "deepspeed-chat-6.7b")),
    (20e9, adapt_recipe("DSC, opt/single_node, 13b", "13b", "13b")),
    (50e9, adapt_recipe("DSC, opt/single_node, 30b", "30b", "13b")),
    (float("inf"), adapt_recipe("DSC, opt/multi_node, 66b", "66b", "66b")),
)
OTHER_RECIPES: tuple[tuple[float, Recipe], ...] = (
    (3.5e9, Recipe("DSC, opt/single_node, 1.3b (16 GPUs)", "deepspeed-chat", "deepspeed-chat", "deepspeed-chat")),
    (15e9, Recipe("DSC, llama2, 7b", LLAMA, LLAMA, LLAMA)),
    (50e9, adapt_recipe("DSC, opt/single_node, 30b", "30b", "llama-2-7b")),
    (float("inf"), adapt_recipe("DSC, opt/multi_node, 66b", "66b", "llama-2-7b")),
)

# The reward model beside the options of `model` whose names begin so: the smallest that the literature uses with this
# tokenizer. A model that is no larger than it is its own reward model, and so is one that is not named here.
REWARD_MODELS: dict[str, str] = {
    "opt-": "opt-350m",  # DSC, all scripts of OPT
    "pythia-": "pythia-1b",  # arXiv 2403.17031: 1B, 2.8B and 6.9B
    "llama-2-": "llama-2-7b",  # DSC, llama2
    "llama-3": "llama-3.2-1b",  # Skywork-Reward-V2, arXiv 2507.01352: Llama-3.2-1B and -3B, Llama-3.1-8B
    "qwen3-": "qwen3-0.6b",  # Skywork-Reward-V2, arXiv 2507.01352: Qwen3-0.6B to -8B
    "qwen2.5-": "qwen2.5-1.5b",  # WorldPM, arXiv 2505.10527: Qwen2.5-1.5B to -72B
    "gemma-2-": "gemma-2-2b",  # GRM-Gemma2-2B, of the authors of arXiv 2406.10216
    # Of these families no reward model of another size is known to us. InstructGPT has 6B beside 175B (arXiv 2203.02155,
    # section 3.5): the largest of about that size.
    "bloom-": "bloom-7b1",
    "codegen-": "codegen-6b",
    "gpt-neox-": "pythia-6.9b",  # which has its tokenizer
    "dolly-v2-": "dolly-v2-7b",
}


def choose_recipe(model: ModelFacts) -> Recipe:
    """Choose the recipe for a model's family and size."""
    if model.parameters < TINY_PARAMETERS:
        return DEMO
    table = OPT_RECIPES if model.family == "opt" else OTHER_RECIPES
    return next(recipe for most, recipe in table if model.parameters <= most)


def choose_reward_model(model: ModelFacts) -> str | None:
    """Choose the option of `reward_model` beside a model. None: the same as `model`."""
    if model.name is None or model.parameters < TINY_PARAMETERS:
        return None
    return next((chosen for prefix, chosen in REWARD_MODELS.items() if model.name.startswith(prefix)), None)
