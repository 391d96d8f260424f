"""The README.md beside each saved model, as the hub shows it: what the model is, how it is used and prompted, of which data
and stages it was made, under which licences, by which keys, how good it is and what it cost."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import Card, kind_of, metrics_of
from rlhf.config.derive import ranks
from rlhf.config.schema import Config, Lora
from rlhf.config.secrets import to_yaml
from rlhf.config.terminal import format_dollars, format_seconds
from rlhf.data.encoded import Tokenizer
from rlhf.engine.save import plain_module
from rlhf.experiment.fingerprint import decisive_values
from rlhf.experiment.lineage import DataSet, Maker, find_base, list_data_sets, list_makers, make_maker
from rlhf.experiment.summary import format_with_error
from rlhf.experiment.templates import find_file
from rlhf.runtime.distributed import is_main
from rlhf.stages.card_usage import describe_prompts, describe_usage
from rlhf.stages.context import Context
from rlhf.tracking.environment import installed_version

UNKNOWN = "not known"
PACKAGES = ("rlhf", "transformers", "torch", "deepspeed")
# What a card of the hub says of a licence.
LICENCE_KEYS = ("license", "license_name", "license_link")


def write_model_card(context: Context, name: str, engine: Any, tokenizer: Tokenizer, metrics: dict[str, float]) -> str:
    """Write the text of the model card for a model of the stage; `name` is one of its kind's `cards`, `metrics` are its
    final ones. Ranks other than the first, which save no text, return none."""
    if not is_main():
        return ""
    spec, model = context.spec, plain_module(engine)
    config, card = spec.config, kind_of(spec.stage).cards[name]
    own = replace(make_maker(asdict(spec)), seconds=context.tracker.seconds)
    makers = [*list_makers(spec.inputs.values()), own]
    base = find_base(own, card.starts)
    licence = {} if base["path"] is None else read_licence(base["path"], base["revision"])
    sentence = card.sentence[0].upper() + card.sentence[1:]
    parts = [
        write_metadata(config, spec.stage, card, makers, base, licence, model.config.model_type),
        f"# {sentence}",
        describe_origin(makers, base, model.config.model_type, config),
        f"## Use\n\n{describe_usage(config, spec.stage, card, model, tokenizer)}",
        f"## Prompts\n\n{describe_prompts(config, card, tokenizer)}",
        f"## Data and licences\n\n{describe_licences(makers, base, licence)}",
        f"## Lineage\n\n{describe_lineage(makers)}",
        f"## Metrics\n\n{describe_metrics(config, spec.stage, metrics)}" if metrics else "",
        f"## Cost\n\n{describe_cost(makers)}",
        f"## Recipe\n\n{describe_recipe(config, spec.stage)}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def write_metadata(
    config: Config, stage: str, card: Card, makers: list[Maker], base: dict[str, Any], licence: dict[str, Any], family: str
) -> str:
    """Write the header that the hub reads."""
    lora: Lora = getattr(config, card.lora)
    is_adapter = lora.rank > 0 and not lora.save_merged
    algorithm = config.algorithm if kind_of(stage).samples_responses else stage
    tags = ["rlhf", stage, algorithm, family, *(["reward-model"] if card.scorer else [])]
    hub_data = [found.name for maker in makers for found in list_data_sets(maker) if found.on_hub]
    data = ModelCardData(
        base_model=base["path"] if is_on_hub(base["path"], base["revision"]) else None,
        datasets=list(dict.fromkeys(hub_data)) or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification" if card.scorer else "text-generation",
        tags=list(dict.fromkeys(tags)),
        **licence,
    )
    return f"---\n{data.to_yaml()}\n---"


def is_on_hub(path: str | None, revision: str | None = None) -> bool:
    """Whether a model's path is an id of the hub, which is in its cache or within reach: an id that neither has may be a
    directory that is gone."""
    if path is None or Path(path).expanduser().exists() or path.startswith(("/", ".", "~")):
        return False
    return find_file(path, "config.json", revision, offline=False) is not None


def read_licence(path: str, revision: str | None) -> dict[str, str]:
    """Return what the card of a model, in its directory or on the hub, says of its licence; empty where it says nothing or
    there is no card within reach."""
    file = find_file(path, "README.md", revision, offline=False)
    try:
        found = metadata_load(file) if file is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    known = {key: (found or {}).get(key) for key in LICENCE_KEYS}
    return {key: value for key, value in known.items() if isinstance(value, str)} if known["license"] else {}


def describe_origin(makers: list[Maker], base: dict[str, Any], family: str, config: Config) -> str:
    """Say what the model was trained from, on what and by which program."""
    start = f"random weights in the shape of {base['name']}" if base["path"] is None else name_model(base["path"])
    names = dict.fromkeys(found.name for maker in makers for found in list_data_sets(maker))
    versions = ", ".join(f"{package} {found}" for package in PACKAGES if (found := installed_version(package)))
    stages = [maker.stage for maker in makers]
    by = f"by the stage{'s' if len(stages) > 1 else ''} {', '.join(stages)} on {', '.join(names)}"
    return f"Family `{family}`, {config.precision.dtype}, trained from {start} {by}; with {versions}."


def name_model(path: str) -> str:
    """Return how a card names a model: an id of the hub as a link, of a directory its name alone."""
    return f"[{path}](https://huggingface.co/{path})" if is_on_hub(path) else f"`{Path(path).expanduser().resolve().name}`"


def describe_licences(makers: list[Maker], base: dict[str, Any], licence: dict[str, str]) -> str:
    """Return the table of the base model and the data sets with their licences."""
    rows = ["| used | name | licence |", "|---|---|---|"]
    if base["path"] is not None:
        stated = licence.get("license_name") or licence.get("license") or UNKNOWN
        rows.append(f"| base model | {name_model(base['path'])} | {stated} |")
    used: dict[DataSet, list[str]] = {}
    for maker in makers:
        for found in list_data_sets(maker):
            used.setdefault(found, []).append(maker.stage)
    for found, stages in used.items():
        name = f"[{found.name}]({found.reference})" if found.on_hub else f"`{found.name}`"
        rows.append(f"| data of {', '.join(dict.fromkeys(stages))} | {name} | {found.licence or UNKNOWN} |")
    told = "Licences are those that the cards of the model and of the data sets state."
    return "\n".join([*rows, "", told])


def describe_lineage(makers: list[Maker]) -> str:
    """Return the table of the stages that led to the model, in the order in which they ran."""
    rows = ["| stage | fingerprint | started from |", "|---|---|---|"]
    for maker in makers:
        parents = {name: list_makers([path])[-1:] for name, path in maker.inputs.items()}
        started = [f"{name}: {f'`{found[0].name}`' if found else name_model(maker.inputs[name])}"
                   for name, found in parents.items()]  # fmt: skip
        rows.append(f"| {maker.stage} | `{maker.fingerprint}` | {', '.join(started)} |")
    return "\n".join(rows)


def describe_metrics(config: Config, stage: str, metrics: dict[str, float]) -> str:
    """Return the table of the final metrics; standard errors stand beside what they are of."""
    known, rows = metrics_of(stage, config), ["| metric | value | meaning |", "|---|---|---|"]
    for name in sorted(metrics):
        if name.removesuffix("_se") in metrics and name.endswith("_se"):
            continue
        metric = known.get(name) or Metric(name, "", "")
        unit = f" {metric.unspoken_unit}" if metric.unspoken_unit else ""
        rows.append(f"| `{name}` | {format_with_error(metrics, metric)}{unit} | {metric.description} |")
    return "\n".join([*rows, "", "On held-out records; ± is the standard error over them."])


def describe_cost(makers: list[Maker]) -> str:
    """Say what each stage took, and at which price."""
    lines = []
    for maker in makers:
        if maker.seconds is None:
            lines.append(f"- {maker.stage}: {UNKNOWN}")
            continue
        nodes, gpus, price = (
            maker.key(f"hardware.{name}") or 0 for name in ("nodes", "gpus_per_node", "price_per_gpu_hour")
        )
        devices = nodes * gpus
        dollars = maker.seconds / 3600 * devices * price
        cost = f", {format_dollars(dollars)} at ${price:g} a device and hour" if price else ""
        lines.append(f"- {maker.stage}: {format_seconds(maker.seconds)} on {devices} × {maker.key('hardware.gpu')}{cost}")
    return "\n".join(lines)


def describe_recipe(config: Config, stage: str) -> str:
    """Return the keys that decide the stage's result."""
    values = {key: asdict_values(value) for key, value in decisive_values(config, stage).items()}
    told = f"The keys that decide the result of the last stage, as `python -m rlhf stage={stage} key=value` takes them; "
    told += "of 1 process." if ranks(config) == 1 else f"of {ranks(config)} processes."
    summary = f"<details><summary>{len(values)} keys</summary>"
    return f"{told}\n\n{summary}\n\n```yaml\n{to_yaml(values)}```\n\n</details>"


def asdict_values(value: Any) -> Any:
    """Return a key's value as plain data: the sets of a mixture are dataclasses."""
    return {name: asdict(member) for name, member in value.items()} if isinstance(value, dict) else value
