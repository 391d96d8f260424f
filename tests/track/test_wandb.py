import pytest

from rlhf.track.wandb import default_mode


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_offline_without_a_login():
    assert default_mode() == "offline"


def test_online_with_a_key_or_a_login(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert default_mode() == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert default_mode() == "online"


def test_what_wandb_itself_was_told_wins(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert default_mode() == "disabled"
