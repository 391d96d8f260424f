"""Tokenizers: the model's own, or a byte-level BPE trained on the training text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config, Model
from rlhf.data.artifact import LENGTHS, artifact_path, identify_data, make_once
from rlhf.data.dataset import Dataset
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates.chat import as_messages
from rlhf.data.templates.plain import render_prompt, render_response
from rlhf.data.tokenized import DataSource
from rlhf.models.source import Source, check_hub_access, expand_path

PAD, EOS = "<|pad|>", "<|endoftext|>"
# What begins the turns of the chat template of a tokenizer that is trained here, and what ends them.
TURNS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT = (
    "{%- for message in messages -%}"
    "{%- if message.role not in ('system', 'user', 'assistant') -%}"
    "{{- raise_exception('the role ' + message.role + ' is not known') -}}"
    "{%- endif -%}"
    "{{- '<|' + message.role + '|>' -}}"
    "{%- if message.role == 'assistant' -%}"
    "{%- generation -%}{{- message.content + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message.content + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
# Tokens that vocabularies without a padding token keep for such uses (Llama 3.1 and later, Llama 3).
RESERVED = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>")


def build_tokenizer(model: Model, key: str, source: DataSource) -> Tokenizer:
    """Return the tokenizer that a stage starts with; `key` is the group that `model` is of. One that is trained on the
    data set is trained once, for all stages and ranks."""
    if model.path is None:
        return load_trained_tokenizer(source)
    return load_tokenizer(model.path, f"{key}.path", model.revision, model.trust_remote_code, model.gguf_file)


def load_trained_tokenizer(source: DataSource) -> Tokenizer:
    """Return the tokenizer that is trained on the training text of a data set: of all its shares, so that all stages have
    the same one."""
    config = replace(source.config, data=replace(source.config.data, share=None))
    source = source if config == source.config else DataSource(config)
    path = artifact_path(config, "tokenizer", {"data": identify_data(config, without=LENGTHS)})

    def make(directory: Path) -> dict[str, Any]:
        texts = tokenizer_corpus(config, source.dataset)
        chat = config.data.template == "chat"
        train_tokenizer(texts, config.data.tokenizer_vocab_size, chat).save_pretrained(directory)
        return {}

    make_once(config, path, make)
    return load_tokenizer(str(path), "data.tokenizer_vocab_size")


def load_tokenizer(
    path: str, key: str, revision: str | None = None, trust_remote_code: bool = False, gguf_file: str | None = None
) -> Tokenizer:
    """Return the tokenizer of a directory or hub id, with a padding token that is not end-of-text.

    Raises ConfigError that names `key`, the key of the configuration that `path` comes from.
    """
    from transformers import AutoTokenizer

    source = Source(path, key, revision, trust_remote_code, gguf_file)
    check_hub_access(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(expand_path(path), **source.options)
    except (OSError, ValueError) as error:
        problem, fix = describe_failure(Path(expand_path(path)), first_line(error))
        raise ConfigError(key, path, problem, fix) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes up where there is none
        raise ConfigError(key, path, "it has no tokenizer", "give a directory or a reachable hub id that has one")
    if getattr(tokenizer, "legacy", None) is not None:  # which transformers would not save, and another blank follows from
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy
    if tokenizer.eos_token_id is None:
        raise ConfigError(key, path, "its tokenizer has no end-of-text token", "choose a model that has one")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": padding_token(tokenizer)})
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    return tokenizer


def describe_failure(directory: Path, error: str) -> tuple[str, str]:
    """Return why no tokenizer can be loaded, and what to give instead."""
    if (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file():
        problem = "its tokenizer.model can be read with the package sentencepiece (or, of Llama 3, tiktoken) alone"
        return problem, "install the package, or add the model's tokenizer.json"
    return f"no tokenizer can be loaded from it ({error})", "give a directory or a reachable hub id that has one"


def padding_token(tokenizer: Tokenizer) -> str:
    """Return a padding token that is not end-of-text: one that the vocabulary reserves, so that it has a row in the
    embedding, or a new one. Our own forward passes never read it."""
    known = tokenizer.get_vocab()
    reserved = (*RESERVED, tokenizer.unk_token)
    return next((token for token in reserved if token in known and known[token] != tokenizer.eos_token_id), "[PAD]")


def tokenizer_corpus(config: Config, dataset: Dataset) -> list[str]:
    """Return the text a tokenizer is trained on: what models will read of the training split."""
    data, train = config.data, dataset.train
    if data.template == "chat":
        asked = [message.content for prompt in train.prompts for message in as_messages(prompt)]
        answered = [record.response for record in train.demonstrations]
        return asked + answered + [comparison.rejected for comparison in train.comparisons]
    return (
        [render_prompt(prompt, data) for prompt in train.prompts]
        + [render_response(demonstration.response, data) for demonstration in train.demonstrations]
        + [render_response(comparison.rejected, data) for comparison in train.comparisons]
    )


def train_tokenizer(texts: list[str], vocabulary: int, chat: bool = False) -> Tokenizer:
    """Return a byte-level BPE with two special tokens, padding and end-of-text, and for `chat` with a chat template and the
    tokens that begin and end its turns; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS, *(TURNS if chat else ())],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def have_same_vocabulary(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids to the same text."""
    return bool(first.get_vocab() == second.get_vocab())
