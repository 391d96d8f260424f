"""Text of any origin is shown, never obeyed."""

import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.table import Table
from rich.text import Text

import rlhf
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal, make_printable, one_line, strip_colours, tell_apart

HOSTILE = "a\x1b[2J\x1b]0;title\x07\x00\x9b31m\r\u202eb\x7f"
SHOWN = "a␛[2J␛]0;title␇␀�31m␍�b␡"


def test_control_characters_are_shown():
    assert make_printable(HOSTILE) == SHOWN
    assert make_printable("tab\tline\nend, umlaut ä, 漢字, 👩‍👩‍👧, عربي") == "tab\tline\nend, umlaut ä, 漢字, 👩‍👩‍👧, عربي"
    assert one_line("a\nb\tc\x00") == "a␊b␉c␀"
    assert make_printable("half \ud800 character") == "half � character"


@given(st.text())
def test_nothing_that_steers_is_left(text):
    shown = make_printable(text)
    assert all(character in "\n\t" or (ord(character) >= 32 and not 0x7F <= ord(character) <= 0x9F) for character in shown)
    assert make_printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_what_it_is_given(terminal):
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=terminal, width=120, color_system=None)
    table = Table(title=Text(HOSTILE))
    table.add_column(Text(HOSTILE))
    table.add_row(HOSTILE, style="bold")
    console.print(HOSTILE)
    console.print(Text(HOSTILE, style="red"))
    console.print(table)
    with Live(Text(HOSTILE), console=console, auto_refresh=False):
        pass
    said = strip_colours(stream.getvalue())
    for code in ("\x1b[?25l", "\x1b[?25h", "\x1b[1A", "\x1b[2K", "\r"):  # Live's own
        said = said.replace(code, "") if terminal else said
    assert make_printable(said) == said
    assert said.count("a␛[2J␛]0;title␀�") >= 5  # rich leaves bells and returns out


def test_markup_and_emoji_codes_are_text():
    stream = io.StringIO()
    Terminal(file=stream).print("outputs/run [a]/[/b] :smile: [red]x")
    assert stream.getvalue() == "outputs/run [a]/[/b] :smile: [red]x\n"


def test_an_error_is_one_line_whatever_the_value_is():
    said = str(ConfigError("data.prompt_format", f"{HOSTILE}\n", "it is odd", "give another"))
    assert said == f"data.prompt_format={SHOWN}␊: it is odd; give another"


def test_everything_is_printed_through_a_terminal():
    """rich's own console would read markup in paths, and pass escape sequences on."""
    root = Path(rlhf.__file__).parent
    made = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    ]
    assert made == []


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["ppo.kl_coef=0.1,seed=1", "ppo.kl_coef=0.3,seed=1"], ["kl_coef=0.1", "kl_coef=0.3"]),
        (["zero.stage=1,critic_zero.stage=0", "zero.stage=0,critic_zero.stage=1"],
         ["zero.stage=1,critic_zero.stage=0", "zero.stage=0,critic_zero.stage=1"]),
        (["m={a:1,b:2},seed=1", "m={a:3,b:2},seed=1"], ["m={a:1,b:2}", "m={a:3,b:2}"]),
        (["seed=1", "seed=1,ppo.lr=2"], ["seed=1", "lr=2"]),
        (["only"], ["only"]),
        ([], []),
    ],
)  # fmt: skip
def test_points_are_told_apart_by_what_differs(names, labels):
    assert tell_apart(names) == dict(zip(names, labels, strict=True))
