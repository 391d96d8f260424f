"""The page on which people judge, in a real browser: two answers, a click, a record, and a stage that learns from it."""

import contextlib
import json
import re
import shutil
import subprocess
import sys

import pytest
from support.command import clean_environment, run_rlhf
from support.tiny_models import save_models

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")


LEARN = (
    "data=files", "data.tokenizer_vocab_size=300", "data.prompt_format=\"'Human: {prompt} Assistant:'\"",
    "data.max_prompt_tokens=128", "data.max_response_tokens=32", "rollout.max_new_tokens=32", "reward.max_steps=1",
    "reward.batch_size=2",
)  # fmt: skip


@contextlib.contextmanager
def open_page(words, directory):
    """The page of `chat --web`, open in a browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `test`")
    command = [sys.executable, "-m", "rlhf", "chat", "--web", *words, "--port", "0"]
    served = subprocess.Popen(command, cwd=directory, env=clean_environment(directory), stdout=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in served.stdout if (found := re.search(r"http\S+token=\S+", line)))
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            opened = browser.new_page()
            opened.goto(address)
            yield opened
            browser.close()
    finally:
        served.terminate()
        served.wait()


@pytest.fixture
def page(make_config, tokenizer, models, tmp_path):
    """The page of two random models."""
    other, _ = save_models(make_config("seed=1"), tokenizer, tmp_path)
    words = [models[0], "--beside", other, "--output", "preferences.jsonl", "rollout.max_new_tokens=8"]
    with open_page(words, tmp_path) as opened:
        yield opened


@needs_browser
@pytest.mark.slow
def test_a_click_becomes_a_record_that_a_reward_model_learns_from(page, tmp_path):
    page.fill("#annotator", "ann")
    page.click("text=Begin")
    shown = []
    for question, verdict in (
        ("How do I clean a kettle?", "Left is better"),
        ("Why?", "Tie"),
        ("How so?", "Right is better"),
    ):
        page.fill("#question", question)
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-verdict=tie]:enabled")
        shown.append([page.text_content("#left"), page.text_content("#right")])
        page.click(f"text={verdict}")
        page.wait_for_selector("#ask:visible")
    page.click("#show")
    page.wait_for_selector("#results table")
    assert "of 2" in page.text_content("#results") and page.text_content("#count") == "3 judged"
    file = tmp_path / "preferences.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["verdict"] for record in records] == ["left", "tie", "right"]
    assert (records[0]["chosen"], records[0]["rejected"]) == tuple(shown[0])
    assert (records[2]["rejected"], records[2]["chosen"]) == tuple(shown[2])
    assert "chosen" not in records[1] and records[1]["shown"][0]["response"] == shown[1][0]
    files = f"data.files.train={file}", f"data.files.heldout={file}"
    trained = run_rlhf("stage=reward", *LEARN, *files, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    counted = json.loads(next((tmp_path / "outputs" / "stages").glob("reward-*/data.json")).read_text())
    assert (counted["train"]["kept"], counted["train"]["dropped"]) == (2, {"without a pair": 1}), counted


@needs_browser
@pytest.mark.slow
def test_keys_rank_a_pool_that_a_reward_model_learns_from(tmp_path):
    rows = [{"prompt": f"Why {n}?", "responses": [f"Because of {n} {k}." for k in range(3)]} for n in range(3)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_page(["--label", "3", "pool.jsonl", "--output", "rankings.jsonl"], tmp_path) as page:
        page.fill("#annotator", "ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("#count:text('0 of 3')")
        shown = page.locator(".answer p").all_text_contents()
        for key in ("2", "3", "Backspace", "1", "Enter"):  # 2 before 1 before 3
            page.keyboard.press(key)
        page.wait_for_selector("#count:text('1 of 3')")
        page.keyboard.press("b")
        page.wait_for_selector("#count:text('2 of 3')")
        page.reload()
        page.fill("#annotator", "ann")
        page.click("text=Begin")
        page.wait_for_selector("#count:text('2 of 3')")
        page.click(".answer >> nth=2")
        page.click("#send")
        page.wait_for_selector("#finished:visible")
    file = tmp_path / "rankings.jsonl"
    first, bad, best = (json.loads(line) for line in file.read_text().splitlines())
    assert [answer["answer"] for answer in first["answers"]] == [shown[1], shown[0], shown[2]]
    assert (bad["verdict"], [answer["rank"] for answer in best["answers"]]) == ("both bad", [1, 2, 2])
    files = f"data.files.train={file}", f"data.files.heldout={file}"
    trained = run_rlhf("stage=reward", "reward.loss=plackett_luce", "reward.grouped=true", *LEARN, *files, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    counted = json.loads(next((tmp_path / "outputs" / "stages").glob("reward-*/data.json")).read_text())
    # An order of three is three pairs, the best of three two.
    assert (counted["train"]["kept"], counted["train"]["dropped"]) == (5, {"rows without answers": 1}), counted
