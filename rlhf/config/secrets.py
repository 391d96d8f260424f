"""What looks like a secret, in one place, and texts and values without it.

from omegaconf import OmegaConf

A configuration may hold a token, in a job's shell lines for instance. Whatever is written to be read by others, uploaded
or printed goes through `mask` or `masked`; only a stage's spec.json holds the secret, and its owner alone can read that.
"""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

MASK = "<secret>"

# A name is a secret's by its last word, or by its last two.
LAST = {"token", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential", "credentials", "pwd"}
LAST_TWO = {f"{kind}key" for kind in ("api", "access", "secret", "private", "auth", "signing", "encryption", "account")}
# Tokens of a language, as in pad_token and per_token.
OF_TEXT = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "start", "end", "stop", "per", "next", "first", "last", "new"}
# Values that hold no secret: none, and what a shell or OmegaConf looks up elsewhere.
HARMLESS = re.compile(r"$|[$`\\]|(?:null|none|true|false|~|\?\?\?|<secret>)$", re.IGNORECASE)

# What its form gives away, whatever its name.
KNOWN = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|sk-(?=[\w-]*\d)[\w-]{16,}"  # OpenAI, Anthropic
    r"|gh[opsru]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}"  # Google
    r"|xox[abeoprs]-[\w-]{10,}"  # Slack
    r"|wandb_v\d+_\w{20,}"  # W&B
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"  # a JSON web token
    r")"
)
LOGIN = re.compile(
    r"(\bwandb\s+login\s+(?:--?[\w=:/.-]+\s+)*)([^\s-]\S{19,})"
)  # 40 hexadecimal digits are a commit elsewhere
HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token)\s+)([^\s'\"]+)", re.IGNORECASE)
IN_URL = re.compile(r"((?<![\w+.-])[a-zA-Z][\w+.-]*://[^\s/:@'\"]*:)([^\s/@'\"]+)(?=@)")
USER_ONLY = re.compile(r"(https?://)([^\s/:@'\"]{16,})(?=@)")  # a token in the user's place
# `NAME=`, also within a word as in `setup=[export NAME=`; `NAME:` only where YAML and JSON have keys.
ASSIGNED = re.compile(
    r"(?<![\w./])(?P<name>[A-Za-z_][\w.-]*)['\"]?(?:\s?=(?!=)\s?|(?P<colon>\s?:\s?))|--?(?P<flag>[A-Za-z][\w-]*)\s+(?=[^\s-])"
)
KEY_BEFORE = re.compile(r"(?:^|[{,\[\n]|\n[\s-]*|^[\s-]*)\s*(?:- )?['\"]?$")
OVERRIDE = re.compile(r"([+~]*)([\w.@/-]+)=(.*)", re.DOTALL)
VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;&|)\]}\"']+")


def is_secret_name(name: str) -> bool:
    """Whether a key, variable or option of this name holds a secret: HF_TOKEN and apiKey do, max_new_tokens does not."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
    if not words:
        return False
    last = words[-1]
    if last == "token":
        return len(words) == 1 or words[-2] not in OF_TEXT
    if last == "pwd":  # the working directory by itself
        return len(words) > 1
    named = last in LAST or last in LAST_TWO or "".join(words[-2:]) in LAST_TWO
    return named or last.endswith(("password", "passwd", "token"))


def mask(text: str) -> str:
    """Return a text without the secrets in it: values of names that say so, tokens of well-known forms, passwords in
    URLs."""
    text = KNOWN.sub(MASK, text)
    for pattern in (LOGIN, HEADER, IN_URL, USER_ONLY):
        text = pattern.sub(rf"\g<1>{MASK}", text)
    parts, position = [], 0
    for found in ASSIGNED.finditer(text):
        if found.start() < position or not is_secret_name(found["name"] or found["flag"]):
            continue
        if found["colon"] and not KEY_BEFORE.search(text, max(0, found.start() - 80), found.start()):
            continue  # prose, as `unexpected token: }`
        value = VALUE.match(text, found.end())
        if value is None or HARMLESS.match(value[0].strip("'\"")):
            continue
        quote = value[0][0] if value[0][0] in "'\"" else ""
        parts += [text[position : found.end()], quote, MASK, quote]
        position = value.end()
    return "".join([*parts, text[position:]])


def mask_values(value: Any, name: str = "") -> Any:
    """Return a value without the secrets in it, `name` being its key; mappings and lists are gone through. Numbers are
    none."""
    if isinstance(value, Mapping):
        return {key: mask_values(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [mask_values(entry, name) for entry in value]
    if not isinstance(value, str):
        return value
    if (override := OVERRIDE.fullmatch(value)) and is_secret_name(override[2]) and not HARMLESS.match(override[3]):
        return f"{override[1]}{override[2]}={MASK}"  # the whole value, which may have blanks in it
    return MASK if is_secret_name(name) and not HARMLESS.match(value) else mask(value)


def to_yaml(values: Any) -> str:
    """Write plain values as YAML for people, without the secrets in them."""
    text: str = OmegaConf.to_yaml(OmegaConf.create(mask_values(values)))
    return text


def secret_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys of a configuration whose values hold a secret."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += secret_keys(value, f"{prefix}{key}.")
        elif mask_values(value, str(key)) != (list(value) if isinstance(value, tuple) else value):
            found.append(f"{prefix}{key}")
    return found
