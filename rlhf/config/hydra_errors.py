"""What Hydra refuses, in one line that names the word at fault and what to type instead."""

import difflib
import re
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.keys import leaf_keys, types_of
from rlhf.config.schema import Config, Data, Model, Zero

# What Hydra raises for what it cannot compose: its errors, OmegaConf's, and those of Python where a value surprises both.
REFUSED = (HydraException, OmegaConfBaseException, ValueError, AttributeError, OverflowError, RecursionError)
Compose = Callable[[list[str]], Any]
# Names that keys of a group once had, with those they have now.
RENAMED: dict[type, dict[str, str]] = {
    Model: {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_width": "head_dim",
        "ffn": "intermediate_size",
        "gated": "gated_mlp",
        "embedding": "word_embed_proj_dim",
        "norm_first": "do_layer_norm_before",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "tied": "tie_word_embeddings",
        "parameters": "num_parameters",
    },
    Zero: {
        "offload_parameters": "offload_param",
        "bucket_elements": "reduce_bucket_size",
        "persistence_elements": "stage3_param_persistence_threshold",
        "live_elements": "stage3_max_live_parameters",
        "quantized_weights": "zero_quantized_weights",
        "quantized_gradients": "zero_quantized_gradients",
        "secondary_partition": "zero_hpz_partition_size",
    },
    Data: {"tokenizer_vocabulary": "tokenizer_vocab_size"},
}


def translate_error(error: Exception, overrides: list[str], compose: Compose | None = None) -> ConfigError:
    """Hydra's complaint about an override, in one line of ours. Where Hydra does not name the word at fault, it is found by
    composing fewer words."""
    text, cause = str(error), error.__cause__ or error
    if isinstance(error, MissingConfigException) and (match := re.search(r"Could not find '([\w@/-]+)/([^/']*)'", text)):
        typed_as = re.compile(rf"\+?({re.escape(match[1])}(?:@[\w.]+)?)='?{re.escape(match[2])}'?$")
        group = next((found[1] for o in overrides if (found := typed_as.match(o))), match[1])
        return unknown_option(group, match[2], re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE))
    if "rimary config" in text:
        return ConfigError("--config-name or --config-path", "...", first_line(error), "leave them out")
    if (match := re.search(r"Could not (?:override|delete)[^']*'([^'=]+)", text)) and "The value of" not in text:
        key = match[1]
        word = next((o for o in overrides if re.match(rf"[+~]*{re.escape(key)}(=|$)", o)), key)
        sign = "~" if word.startswith("~") else ""
        within = re.search(rf"full_key: ({re.escape(key)}\.\S+)", str(cause))  # of a mapping, as model={a: 1}
        return unknown_key(within[1] if within else key, word.partition("=")[2] or "...", sign)
    if match := re.search(r"An item is already at '([^']+)'", text):
        word = next((o for o in overrides if o.startswith(f"+{match[1]}=")), f"+{match[1]}=...")
        return ConfigError(*split(word), "there is such a key, with a value", f"write {word.lstrip('+')}")
    if told := translate_message(text, cause, overrides):
        return told
    word = word_at_fault(overrides, compose) if compose is not None else None
    key, value = split(word) if word is not None else ("configuration", "...")
    return ConfigError(key, value, first_line(cause), "`python -m rlhf --help` lists groups, --cfg job keys")


def translate_message(text: str, cause: BaseException, overrides: list[str]) -> ConfigError | None:
    """Return what Hydra says of a word that it names."""
    if match := re.search(r"Ambiguous value for argument '([^=']+)=(.*?)'", text):
        fix = f"sweep with -m, or give a list, {match[1]}=[{match[2]}]"
        return ConfigError(match[1], match[2], "several values", fix)
    if match := re.search(r"config group '([^']+)' does not exist", text):
        word = next((o for o in overrides if re.match(rf"[+~]*{re.escape(match[1])}@", o)), match[1])
        return ConfigError(*split(word), f"there is no group {match[1]}", "`python -m rlhf --help` lists the groups")
    if match := re.search(r"Error merging override ([^=\s]+)=(.*)", text):
        return ConfigError(match[1], match[2], first_line(cause), "see `python -m rlhf --cfg job`")
    return None


def split(word: str) -> tuple[str, str]:
    """Return the key of an override, and its value."""
    key, _, value = word.partition("=")
    return key, value


def word_at_fault(words: list[str], compose: Compose) -> str | None:
    """Return the word with which composing begins to fail, if it works without any."""
    good, bad = -1, len(words)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            compose(words[:middle])
            good = middle
        except REFUSED:
            bad = middle
    return words[bad - 1] if bad > 0 else None


def unknown_option(group: str, option: str, options: list[str]) -> ConfigError:
    """Return an error that names a group's options, the nearest one first."""
    near = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(group, option, "there is no such option", f"{hint}choose one of {list_options(options)}")


def list_options(options: list[str]) -> str:
    """Return the options of a group; where most are sizes of something, as models are, by what they are sizes of, from
    small to large."""
    families: dict[str, list[tuple[float, str]]] = {}
    for option in options:
        size = re.search(r"-(tiny|medium|large|xl|[\d.]+[mb]\d?)$", option)
        families.setdefault(option[: size.start()] if size else option, []).append(
            (measure(size[1] if size else ""), option)
        )
    if 2 * len(families) > len(options):
        return ", ".join(options) or "none"
    return "; ".join(", ".join(option for _, option in sorted(found)) for _, found in sorted(families.items()))


# GPT-2's names without a number; the smallest has none.
GPT2_SIZES = {"": 124.0, "medium": 355.0, "large": 774.0, "xl": 1558.0}


def measure(size: str) -> float:
    """Return a size as it is written in names of models, in millions of weights: 350m, 1.3b, bloom's 7b1; tiny is the
    smallest, and GPT-2's are those of its paper."""
    if size in GPT2_SIZES:
        return GPT2_SIZES[size]
    match = re.fullmatch(r"([\d.]+)([mb])(\d?)", size)
    return float(f"{match[1]}.{match[3]}" if match[3] else match[1]) * (1000 if match[2] == "b" else 1) if match else 0.0


def current_name(key: str) -> str | None:
    """Return the name that a renamed key has now; None for a key that never had another name."""
    group, _, name = key.rpartition(".")
    renamed = RENAMED.get(types_of(Config).get(group, Config), {}).get(name)
    return None if renamed is None else f"{group}.{renamed}"


def unknown_key(key: str, value: Any = "...", sign: str = "") -> ConfigError:
    """Return an error that names what the key is called now, or the nearest key there is; `sign` is what was typed before
    the key, as ~."""
    if (renamed := current_name(key)) is not None:
        return ConfigError(f"{sign}{key}", value, "the key has another name", f"did you mean {renamed}?")
    keys = leaf_keys()
    groups = sorted({".".join(k.split(".")[:i]) for k in keys for i in range(1, k.count(".") + 1)})
    near = difflib.get_close_matches(
        key, [k for k in (*keys, *groups, "experiments", "sweeps") if k != key], n=1, cutoff=0.5
    )
    if not near:
        leaf = key.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1] for k in keys], n=1, cutoff=0.6)
        near = [k for k in keys if near and k.endswith("." + near[0])][:1]
    fix = f"did you mean {near[0]}?" if near else "`python -m rlhf --cfg job` lists the keys"
    return ConfigError(f"{sign}{key}", value, "there is no such key", fix)
