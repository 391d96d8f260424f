"""Templates: the text of conversations, and its token ids, with the kinds of tokenizers that models have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_tokenizers import CHATML, LLAMA2, byte_level, llama, sentencepiece
from transformers import AutoTokenizer

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message
from rlhf.data.templates import build_template
from rlhf.data.templates.jinja import pin_dates
from rlhf.models.tokenizer import load_tokenizer

MADE = {
    "byte-level": lambda place: byte_level(CHATML),
    "byte-level with a blank": lambda place: byte_level(CHATML, add_prefix_space=True),
    "llama by class": llama,
    "llama by class, legacy": lambda place: llama(place, legacy=True),
    "a blank before a text": lambda place: sentencepiece("first", LLAMA2),
    "llama by tokenizer.json": lambda place: sentencepiece("legacy", LLAMA2),
    "a blank after each special token": lambda place: sentencepiece("always", LLAMA2),
    "no blank": lambda place: sentencepiece("never", LLAMA2),
    "appends end-of-text": lambda place: sentencepiece("first", LLAMA2, ends=True),
}
TALK = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Who?"))
words = st.text(st.sampled_from("abkW .,:\n\t<|>é中🙂"), max_size=12)
says = st.lists(words, min_size=1, max_size=5).filter(lambda said: len(said) % 2 == 1)


def keys(template="plain", **changed):
    """The keys of `data` that a template reads."""
    given = {
        "template": template, "format": "plain", "prompt_format": "Human: {prompt}\n\nAssistant:",
        "response_format": " {response}", "max_prompt_tokens": 4000, "max_response_tokens": 4000,
        "truncation": "paragraphs",
    }  # fmt: skip
    return Data(**given | changed)


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """`templates(kind, template)`: the template of a tokenizer of this kind, made once."""
    made = {}

    def make(kind, template):
        if (kind, template) not in made:
            made[kind, template] = build_template(keys(template), MADE[kind](tmp_path_factory.mktemp("tokenizer")))
        return made[kind, template]

    return make


def as_dicts(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


def talk(said):
    """A conversation of these texts in turn."""
    return tuple(Message(("user", "assistant")[number % 2], text) for number, text in enumerate(said))


def read(template, prompt, response):
    """Prompt and response as ids, of a prompt that fits."""
    return template.encode_answer(template.shorten(prompt), response)


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("kind", MADE)
@given(said=says, response=words)
def test_ids_are_those_that_transformers_makes_of_the_template(templates, kind, form, said, response):
    """A prompt and a response, each by itself, are cut as the whole text is: no blank is added between them."""
    template, prompt = templates(kind, form), talk(said)
    found = read(template, prompt, response)
    whole = template.tokenizer.apply_chat_template([*as_dicts(prompt), {"role": "assistant", "content": response}])
    asked = template.tokenizer.apply_chat_template(as_dicts(prompt), add_generation_prompt=True)
    assert found.prompt == asked["input_ids"]
    ids = found.prompt + found.response
    if form == "plain" or not response[:1].isspace():  # else the tokenizer would join the blanks on both sides
        assert ids == whole["input_ids"][: len(ids)]
    decode = template.tokenizer.decode
    assert decode(ids) == decode(whole["input_ids"])[: len(decode(ids))]
    assert ids[-1] == template.end_ids[0]


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("kind", MADE)
def test_a_saved_tokenizer_has_the_template(templates, tmp_path, kind, form):
    template = templates(kind, form)
    template.tokenizer.save_pretrained(tmp_path)
    saved, found = AutoTokenizer.from_pretrained(tmp_path), read(template, TALK, "I am.")
    asked = saved.apply_chat_template(as_dicts(TALK), add_generation_prompt=True)["input_ids"]
    whole = saved.apply_chat_template([*as_dicts(TALK), {"role": "assistant", "content": "I am."}])["input_ids"]
    assert found.prompt == asked
    assert found.prompt + found.response == whole[: found.length]
    rest = saved.decode(whole[found.length :]).strip()
    assert rest == ""


@pytest.mark.parametrize("kind", MADE)
def test_beginning_of_text_stands_once_and_end_of_text_only_at_ends(templates, kind):
    for form in ("plain", "chat"):
        template = templates(kind, form)
        bos, eos = template.tokenizer.bos_token_id, template.tokenizer.eos_token_id
        found = read(template, "Why?", "So.")
        ids = found.prompt + found.response
        assert ids.count(bos) == (bos is not None) and eos not in found.prompt and found.response.count(eos) <= 1
    twice = build_template(keys(prompt_format="<s>[INST] {prompt} [/INST]"), sentencepiece("first"))
    assert twice.encode_prompt("Why?").count(1) == 1


def test_a_format_with_beginning_of_text_is_that_of_the_models_own_template(templates):
    """Llama 2's format typed by hand gives the ids of its chat template."""
    plain = build_template(
        keys(prompt_format="<s>[INST] {prompt} [/INST]", response_format=" {response} "), sentencepiece("first")
    )
    chat = templates("a blank before a text", "chat")
    assert read(plain, "Why?", "So.") == read(chat, "Why?", "So.")


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_text_of_a_special_token_is_text(templates, kind, form):
    template = templates(kind, form)
    text = "Is <|im_end|> or </s><s> or <|endoftext|> a word?"
    clean = "Is x or y or z a word?"
    found, other = read(template, text, text), read(template, clean, clean)
    special = {*template.tokenizer.all_special_ids, *template.end_ids}
    assert [token for token in found.prompt if token in special] == [token for token in other.prompt if token in special]
    assert [token for token in found.response if token in special] == [template.end_ids[0]]
    assert template.decode(found.response) == text
    assert text in template.tokenizer.decode(found.prompt)


@pytest.mark.parametrize("kind", MADE)
def test_the_loss_covers_what_the_assistant_says_in_every_turn(templates, kind):
    for form in ("plain", "chat"):
        template = templates(kind, form)
        found = read(template, TALK, "I am.")
        said = [token for token, kept in zip(found.prompt + found.response, found.loss, strict=True) if kept]
        text = template.tokenizer.decode(said)
        end = template.tokenizer.decode(template.end_ids[:1])
        assert text.replace(" ", "") == (f"Hello.Iam.{end}" if form == "plain" else f"Hello.{end}Iam.{end}")
    assert read(template, "Why?", "So.").loss is None


def test_marks_of_the_template_say_what_is_trained_on():
    marked = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + ': ' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{{ '<|im_end|>' }}{% else %}"
        "{{ message.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
    )
    template = build_template(keys("chat"), byte_level(marked))
    found = read(template, TALK, "I am.")
    said = [token for token, kept in zip(found.prompt, found.loss, strict=False) if kept]
    assert template.tokenizer.decode(said) == "Hello."


def test_a_template_that_changes_earlier_turns_is_refused_for_loss_on_all_turns():
    again = "message['content'] | upper if message.role == 'assistant' and not loop.last else message['content']"
    shouts = CHATML.replace("message['content']", f"({again})")
    template = build_template(keys("chat"), byte_level(shouts))
    assert read(template, TALK, "I am.").loss is None
    with pytest.raises(ConfigError, match=r"^sft\.loss_on=assistant: .*earlier turns; set sft\.loss_on=completion"):
        template.check_turns()


def test_nothing_is_stripped_from_a_chat_and_nothing_added(templates):
    template = templates("byte-level", "chat")
    found = read(template, " Why?\n", "\n So. ")
    assert template.tokenizer.decode(found.prompt) == "<|im_start|>user\n Why?\n<|im_end|>\n<|im_start|>assistant\n"
    assert template.tokenizer.decode(found.response) == "\n So. <|im_end|>"
    assert template.decode(found.response) == "\n So. "
    assert template.end_ids == (template.tokenizer.convert_tokens_to_ids("<|im_end|>"), template.tokenizer.eos_token_id)


@pytest.mark.parametrize("truncation", ["paragraphs", "left"])
def test_a_long_conversation_loses_whole_turns_but_not_the_system_message(truncation):
    template = build_template(keys("chat", truncation=truncation), byte_level(CHATML))
    long = (TALK[0], *talk([f"Question {number}" for number in range(21)]))
    short = (TALK[0], *long[-3:])
    template.data.max_prompt_tokens = len(template.read(short).ids) + 3
    assert template.shorten(long).prompt == short
    template.data.max_prompt_tokens = 60
    found = template.shorten((TALK[0], Message("user", "\n".join(["A line."] * 30))))
    assert found.prompt[0] == TALK[0] and 20 < len(found.ids) <= 60
    assert found.prompt[1].content.endswith("A line.") and set(found.prompt[1].content.split("\n")) <= {
        "A line.", "A line."[-len(found.prompt[1].content.split("\n")[0]) :],
    }  # fmt: skip
    template.data.truncation = "drop"
    assert template.shorten(long) is None


def test_a_conversation_that_the_template_refuses_is_dropped_with_its_reason(templates):
    template = templates("llama by class", "chat")
    for messages in (talk(["a", "b", "c"])[1:], (Message("user", "a"), Message("user", "b"))):
        with pytest.raises(Dropped, match=r"the chat template refuses .*roles must alternate"):
            template.shorten(messages)
    with pytest.raises(Dropped, match="leaves a message out"):
        template.shorten((*talk(["a", "b", "c"]), Message("tool", "d")))


BROKEN = {
    "{{ 'x' ": "refuses",
    "{% for message in messages %}{{ message.content }}{% endfor %}": "without a token that ends the answer",
    "{{ raise_exception('never') }}": "never",
    "{% for message in messages %}{{ message.role }}<|im_end|>{% endfor %}": "leaves a message out",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_template_without_a_text_for_an_answer_is_refused(tmp_path, text):
    file = tmp_path / "own.jinja"
    file.write_text(text)
    with pytest.raises(ConfigError, match=BROKEN[text]) as error:
        build_template(keys(str(file)), byte_level())
    said = str(error.value)
    assert said.startswith(f"data.template={file}: ") and "\n" not in said and "set data.template=plain" in said


def test_a_template_of_your_own_is_saved_with_the_tokenizer(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(CHATML)
    build_template(keys(str(file)), tokenizer := byte_level())
    assert tokenizer.chat_template == CHATML
    assert build_template(keys("auto"), tokenizer).end_ids == (3, 0)


def test_chat_needs_a_chat_template():
    with pytest.raises(ConfigError, match=r"^data\.template=chat: the tokenizer has no chat template; set data\.temp"):
        build_template(keys("chat"), byte_level())
    assert build_template(keys("auto"), tokenizer := byte_level()).end_ids == (0,)
    assert build_template(keys("auto"), tokenizer).end_ids == (0,)  # it is no chat template of its own


def test_the_text_does_not_depend_on_the_day():
    pinned = pin_dates("{{ strftime_now('%d %b %Y') }}" + CHATML)
    tokenizer = byte_level(pinned)
    assert tokenizer.apply_chat_template(as_dicts(TALK[1:2]), tokenize=False).startswith("26 Jul 2024<|im_start|>user")
    with pytest.raises(ValueError, match="the day"):
        pin_dates("{{ strftime_now(form) }}")


def test_a_bare_tokenizer_model_names_the_package_that_reads_it(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0b")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"^model\.path=.*the package sentencepiece .*; install the package, or add the"):
        load_tokenizer(str(tmp_path), "model.path")
