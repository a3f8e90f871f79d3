"""A push is refused at once for a name that no repository can have, or without an access token."""

import subprocess
import sys

import pytest

from fastgoal.cli import main
from fastgoal.hub_cards.access import check_repo_name, require_token


def test_names_of_repositories():
    for name in ("me/clip", "clip", "a-b.c/d_e"):
        check_repo_name(name)
    for name in ("a/b/c", "me/", "me/my clip", "", "me/a--b"):
        with pytest.raises(ValueError, match=rf"^`repo` must be OWNER/NAME, got '{name}'\. ") as error:
            check_repo_name(name)
        assert "repo_type" not in str(error.value)


def test_tokens(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert require_token("hf_a") == "hf_a"
    with pytest.raises(ValueError, match=r"no access token.*HF_TOKEN"):
        require_token()


def test_the_commands_check_before_the_libraries_load(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fastgoal.commands.options.quiet_libraries", lambda **_: pytest.fail("loads transformers"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    folder, data, space = ["push", str(tmp_path)], ["push-data", str(tmp_path)], ["push-space"]
    for start, end in ((folder, []), (data, ["--license", "mit"]), (space, ["--model", "me/clip"])):
        assert main([*start, "a/b/c", "--dry-run", *end]) == 2
        assert "error: REPO must be OWNER/NAME, got 'a/b/c'." in capsys.readouterr().err
        assert main([*start, "me/name", *end]) == 2
        assert "no access token" in capsys.readouterr().err
    assert main([*space, "me/name", "--model", str(tmp_path), "--dry-run"]) == 2
    assert "--model must be OWNER/NAME" in capsys.readouterr().err


def test_a_dry_run_of_a_space_asks_the_hub_nothing(monkeypatch, capsys):
    monkeypatch.setattr("fastgoal.processing.names.check_hub", lambda *_: pytest.fail("asks the Hub"))
    monkeypatch.setattr("fastgoal.commands.options.check_hub", lambda *_: pytest.fail("asks the Hub"))
    assert main(["push-space", "me/name", "--model", "me/clip", "--dry-run"]) == 0
    assert "would be sent to me/name as a space" in capsys.readouterr().out


def test_nothing_heavy_is_imported():
    code = "import sys, fastgoal.hub_cards.access; print(len({'torch', 'transformers', 'datasets'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"
