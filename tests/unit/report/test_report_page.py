import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from support.fake_sweep import FakeSweep, answer, config, environment, grid, step, write

from rlhf.cli.report import main
from rlhf.report.collect import collect
from rlhf.report.groups import group_points
from rlhf.report.looks import PALETTE, choose_design, colours
from rlhf.report.samples import compare_answers
from rlhf.report.series import PLACES, bin_series, trace

SECTIONS = (
    "overview", "curves", "frontier", "gains", "figures", "throughput", "samples",
    "configuration", "failures", "lineage", "alarms", "versions",
)  # fmt: skip
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


def page_of(sweep):
    assert main([str(sweep.place)]) == 0
    return (sweep.place / "report" / "report.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(grid(tmp_path_factory.mktemp("outputs")))


class Tags(HTMLParser):
    """Every tag with its attributes, every id, and whether tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "br", "use", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in ("use", "path"):
            assert self.open.pop() == tag


def test_the_page_is_whole(page):
    tags = Tags(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert set(SECTIONS) <= set(tags.ids)
    links = {attributes["href"][1:] for tag, attributes in tags.tags if tag == "a"}
    assert links <= set(tags.ids)
    assert page.count("<figure") == 4  # curves, frontier, gains, lineage


def test_the_page_needs_nothing_else(page):
    bare = re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", page)
    for outside in ("http://", "https://", "src=", "@import", "<link", "<script", "url(//"):
        assert outside not in bare


def test_every_section_says_what_it_should(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for said in (
        "4 points: 4 done",
        "8 stages: 2 sft, 2 reward, 4 ppo",
        "ppo.kl_coef=0.3 n=2",
        "t-test over seeds",
        "[0.0734, 6.43]",
        "to SFT: +2.75, p=0.058",
        "What now?",
        "policy 0.3 0",
        "score 1.25 · gold 0.75",
        "2 × a100",
        "Failures None.",
        "python -m rlhf ppo.kl_coef=0.3 ppo.max_steps=4 seed=1",
        "no alarm on 4 stages",
        "nats per response",
    ):
        assert said in text, said
    assert "early" not in text  # an earlier evaluation
    assert '<strong class="best">3.25</strong>' not in page  # two seeds each, p = 0.13


def test_only_differences_of_the_configuration_are_shown(page):
    section = page.split('id="configuration"')[1].split("</section>")[0]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", section)[:4] == ["point", "state", "ppo.kl_coef", "seed"]
    assert "output_root" not in section
    assert "betas" not in section


def test_markup_in_answers_names_and_reasons_is_text(tmp_path):
    sweep = FakeSweep(tmp_path, name="<b>kl</b>")
    lines, figures = [step(1, 0.5, gold=1.0)], {"eval/gold": 1.0, "eval/kl_sequence": 1.0, EVIL: 1.0}
    stage = sweep.stage("ppo", 1, figures, lines=lines, samples=[answer(EVIL, ppo=EVIL, sft=EVIL)])
    write(stage / "environment.json", environment() | {"host": EVIL})
    failed = sweep.stage("ppo", 2, state="failed", reason=EVIL)
    sweep.point([stage], settings=config(EVIL), name="a$_{x}$<i>")
    sweep.point([failed], settings=config("_$x$"), name="b", state="failed")
    page = page_of(sweep)
    for live in ("<script", "<img", "<i>", "<b>"):
        assert live not in page
    assert page.count("&lt;script&gt;alert(1)") >= 6
    Tags(page)
    for name in ("points.md", "table.md"):
        assert "<" not in (sweep.place / "report" / name).read_text()


def test_halves_of_characters_and_names_that_are_no_text(tmp_path):
    sweep = FakeSweep(tmp_path)
    sweep.point(
        [sweep.stage("ppo", 1, lines=[step(1, 0.0)], samples=[answer("\ud800", ppo="\udc00 \x00 \u202e")])], name="\udcff"
    )
    assert "<svg" in page_of(sweep)


def test_samples_of_one_seed_last_evaluation_and_the_prompts_that_all_have(tmp_path):
    sweep = grid(tmp_path)
    place = sweep.root / "stages" / f"ppo-{18:012x}" / "samples.jsonl"
    place.write_text("".join(json.dumps(answer(prompt, ppo="x" * 9999)) + "\n" for prompt in ("other", "What now?")))
    seed, prompts = compare_answers(group_points(collect(sweep.place)))
    assert seed == 0
    assert [prompt.text for prompt in prompts] == ["What now?", "And then?", "other"]
    assert [answer.who for answer in prompts[0].answers] == ["SFT", "ppo.kl_coef=0.05", "ppo.kl_coef=0.3"]
    assert prompts[0].answers[1].text == "policy 0.05 0"
    assert prompts[0].answers[2].text.endswith("… (8,499 more characters)")


def test_curves_over_seeds_begin_with_the_gold_reward_of_sft(tmp_path):
    group = group_points(collect(grid(tmp_path).place))[0]
    steps, values = trace(group.stages("ppo"), "eval/gold")
    assert steps.tolist() == [0, 2, 4]
    assert values.tolist() == [[0.5, 0.5, 1.0], [0.5, 1.5, 2.0]]
    steps, values = trace(group.stages("ppo"), "reward/mean")
    assert (steps.tolist(), values[0].tolist()) == ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4])


def test_long_curves_are_averaged():
    steps = np.arange(1.0, 1001.0)
    values = np.stack([steps, np.where(steps > 500, np.nan, 2 * steps)])
    short_steps, short = bin_series(steps, values)
    assert short.shape == (2, PLACES)
    assert (short_steps[0], short[0, 0], short[1, 0]) == (3.0, 3.0, 6.0)
    assert np.isnan(short[1, -1])


def test_a_curve_over_a_cost_stands_where_its_steps_have_brought_it(tmp_path):
    """Steps of 2 s and 1 s in turn, each of 8 samples; on two devices at 36 dollars an hour."""
    sweep = grid(tmp_path)
    stages = group_points(collect(sweep.place))[0].stages("ppo")
    assert [trace(stages, "reward/mean", cost)[0].tolist() for cost in ("samples", "seconds", "tokens")] == [
        [8, 16, 24, 32], [2, 3, 5, 6], [200, 300, 500, 600],
    ]  # fmt: skip
    assert trace(stages, "eval/gold", "samples")[0].tolist() == [0, 16, 32]
    assert trace(stages, "eval/gold", "kl/sequence")[0].tolist() == [0, 1, 2]
    assert trace(stages, "eval/gold", "dollars")[0].tolist() == []  # the machine has no price


def sweep_of(tmp_path, *swept):
    """A sweep with these overrides, a point each."""
    sweep = FakeSweep(tmp_path)
    for number, overrides in enumerate(swept):
        place = sweep.point([sweep.stage("ppo", number)], settings=config(number), name=str(number))
        summary = json.loads((place / "summary.json").read_text())
        (place / "summary.json").write_text(json.dumps(summary | {"overrides": list(overrides)}))
    return group_points(collect(sweep.place))


def test_of_two_swept_keys_colour_tells_one_and_shape_the_other_and_lines_follow_one_number(tmp_path):
    pairs = [(f"kl={kl}", f"size={size}") for size in ("small", "large") for kl in (0.5, 0.05, 0.1)]
    groups = sweep_of(tmp_path, *pairs)
    design = choose_design(groups)
    assert len(set(design.looks)) == 6
    assert (len({look.colour for look in design.looks}), len({look.marker for look in design.looks})) == (3, 2)
    assert design.key == "Colour tells kl, line style and marker tell size."
    joined = [[groups[number].label for number in line] for line in design.lines]
    assert joined == [[f"kl={kl}, size={size}" for kl in (0.05, 0.1, 0.5)] for size in ("large", "small")]


def test_of_more_values_than_a_plot_can_show_each_value_of_a_key_has_a_plot_of_its_own(tmp_path):
    pairs = [(f"kl={kl}", f"size={size}") for size in ("small", "large") for kl in range(1, 8)]
    groups = sweep_of(tmp_path, *pairs)
    design = choose_design(groups)
    assert design.key == "Colour tells kl, panels tell size."
    assert [(title, len(numbers)) for title, numbers in design.plots] == [("size=large", 7), ("size=small", 7)]
    for _, numbers in design.plots:
        assert len({design.looks[number].colour for number in numbers}) == 7
        assert numbers in design.lines
    assert [entry.label for entry in design.legend] == [f"kl={kl}" for kl in range(1, 8)]
    small, large = (
        next(n for n, group in enumerate(groups) if group.label == f"kl=3, size={size}") for size in ("small", "large")
    )
    assert design.looks[small] == design.looks[large] and set(design.legend[2].groups) == {small, large}


def test_no_line_joins_groups_that_no_number_orders(tmp_path):
    design = choose_design(sweep_of(tmp_path, ["algorithm=ppo"], ["algorithm=grpo"], ["algorithm=rloo"]))
    assert (design.order, design.lines) == (None, ())


def test_colours_are_distinct_however_many_groups_there_are():
    for count in (1, len(PALETTE), len(PALETTE) + 1, 30):
        assert len(set(colours(count))) == count


def test_a_sweep_of_sft_alone_shows_its_loss(tmp_path):
    sweep = FakeSweep(tmp_path)
    for seed in (0, 1):
        lines = [{"step": n, "time": 1.0, "train/loss": 1 / n} for n in (1, 2)]
        sweep.point([sweep.stage("sft", seed, {"eval/perplexity": 2.0}, lines=lines)], settings=config(seed=seed))
    page = page_of(sweep)
    assert "Training loss, sft" in page
    assert "No PPO stage is done yet." in page


def test_a_sweep_that_has_not_begun(tmp_path):
    sweep = FakeSweep(tmp_path)
    sweep.point([tmp_path / "stages" / "ppo-000000000001"], state="planned")
    page = page_of(sweep)
    Tags(page)
    assert "No stage has logged a step yet." in page
    assert "1 stage not finished yet" in re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_stages_of_different_code_say_so(tmp_path):
    sweep = grid(tmp_path)
    write(tmp_path / "stages" / f"sft-{1:012x}" / "environment.json", environment(commit="d" * 40))
    section = page_of(sweep).split('id="versions"')[1]
    assert "c" * 40 in section
    assert re.search("d{40}.*" + f"sft-{1:012x}", section)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, on a half-finished sweep's page."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    root = tmp_path_factory.mktemp("browser")
    sweep = grid(root / "outputs")
    failed = sweep.stage("ppo", 99, state="failed", reason="out of memory", lines=[step(1, 0.0)])
    sweep.point([failed], state="failed", settings=config(0.9))
    page_of(sweep)
    quiet = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    options = [
        "--headless",
        "--no-sandbox",
        *(f"--{option}" for option in quiet.split()),
        f"--user-data-dir={root / 'profile'}",
    ]

    def look(*more):
        command = [program, *options, "--window-size=1200,5000", *more, (sweep.place / "report" / "report.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return look


def test_a_browser_shows_the_page(browser, tmp_path):
    shot = tmp_path / "page.png"
    browser(f"--screenshot={shot}")
    picture = matplotlib.image.imread(shot)[:, :, :3]
    assert picture.shape[1] == 1200
    shown = set(np.unique(np.round(picture * 255).astype(int) @ (65536, 256, 1)).tolist())
    assert len(shown) > 200
    for colour in PALETTE[:2]:  # the curves and dots of the first two groups
        assert int(colour.removeprefix("#"), 16) in shown


def test_a_browser_finds_every_section(browser):
    dom = browser("--dump-dom")
    for heading in ("Overview", "Curves over steps", "Reward and KL", "Final figures", "Throughput", "Samples", "Failures"):
        assert f"<h2>{heading}</h2>" in dom
    assert "out of memory" in dom


def test_lengths_of_the_data_are_drawn_where_they_are_known(tmp_path):
    sweep = grid(tmp_path)
    assert 'id="lengths"' not in page_of(sweep)
    stage = next((sweep.root / "stages").glob("sft-*"))
    histogram = {"width": 2, "prompt": [0, 3, 9], "response": [1, 0, 5, 2]}
    write(stage / "data.json", {"train": {"histogram": histogram}, "heldout": {}})
    assert 'id="lengths"' in page_of(sweep)
    for damaged in ({"train": 3}, {"train": {"histogram": {"width": 0, "prompt": [], "response": []}}}, [1]):
        write(stage / "data.json", damaged)
        assert 'id="lengths"' not in page_of(sweep)
