"""Tokenizers: the model's own, or a byte-level BPE trained on the training text."""

from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Model
from rlhf.data.records import Dataset
from rlhf.data.tokens import Tokenizer

PAD, EOS = "<|pad|>", "<|endoftext|>"


def build_tokenizer(model: Model, config: Config, dataset: Dataset) -> Tokenizer:
    """The tokenizer that a stage starts with."""
    if model.path is None:
        return train_tokenizer(training_text(config, dataset), config.data.tokenizer_vocabulary)
    return load_tokenizer(model.path, model.revision, model.trust_remote_code)


def load_tokenizer(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a directory or hub id, with a padding token that is not end-of-text."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError("model.path", path, "no tokenizer can be loaded from it", first_words(error)) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError("model.path", path, "its tokenizer has no end-of-text token", "choose a model that has one")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    return tokenizer


def first_words(error: Exception) -> str:
    """The first line of an error, as a hint."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def training_text(config: Config, dataset: Dataset) -> list[str]:
    """The text a tokenizer is trained on: what models will read of the training split."""
    prompts = [config.data.prompt_format.format(prompt=prompt) for prompt in dataset.train.prompts]
    return (
        prompts
        + [" " + d.response for d in dataset.train.demonstrations]
        + [" " + c.rejected for c in dataset.train.comparisons]
    )


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE with two special tokens, padding and end-of-text; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)


def same_vocabulary(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids to the same text."""
    return bool(first.get_vocab() == second.get_vocab())


def tokenizer_directory(path: str) -> str:
    """Where a model's tokenizer is: beside its weights."""
    return str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
