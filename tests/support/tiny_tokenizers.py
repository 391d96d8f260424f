"""Tiny tokenizers of the kinds that models have, and chat templates as theirs."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from rlhf.models.tokenizer import load_tokenizer

CORPUS = ["Human: How do I clean a kettle?\n\nAssistant: Wipe it with a soft cloth.", "system user assistant INST SYS"] * 20
TURNS = ("<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 2's own, but for its default system message.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def byte_level(template=None, add_prefix_space=False):
    """A byte-level BPE, as GPT-2's, Llama 3's and Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    special, letters = ["<|endoftext|>", "<|pad|>", *TURNS], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>")
    tokenizer.chat_template = template
    return tokenizer


def pieces():
    """Vocabulary and merges of a small SentencePiece-like BPE with bytes to fall back on."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    trained = json.loads(backend.to_str())["model"]
    letters = map(chr, range(33, 127))
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters, *trained["vocab"]]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return vocabulary, [tuple(merge) for merge in trained["merges"]]


def sentencepiece(scheme="first", template=None, ends=False):
    """A BPE as SentencePiece's, with beginning-of-text, and with end-of-text too if it `ends` texts by itself.

    `scheme` says where a blank is put before a text: `first` at its beginning (Llama 2 by its class, not legacy), `always`
    also after a special token, `never`, or `legacy`: by a normalizer, as in Llama 2's old tokenizer.json.
    """
    vocabulary, merges = pieces()
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    single = "<s> $A </s>" if ends else "<s> $A"
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def llama(place, legacy=False):
    """A tokenizer of Llama 2's class, as it is loaded from a directory, which is made. It puts a blank before a text, and
    if `legacy` after each special token too."""
    vocabulary, merges = pieces()
    LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, chat_template=LLAMA2).save_pretrained(place)
    file = place / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"legacy": legacy}))
    return load_tokenizer(str(place), "model.path")
