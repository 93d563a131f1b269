"""The browser that prints and checks the site: the one that is named, or one of its family."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

spec = importlib.util.spec_from_file_location("browser", ROOT / "book" / "browser.py")
browser = importlib.util.module_from_spec(spec)
spec.loader.exec_module(browser)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The only program on the PATH, by the name of a browser; it does nothing."""
    path = tmp_path / browser.NAMES[0]
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("BROWSER", browser.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def installations(monkeypatch):
    """Calls of the installation, which installs nothing."""
    calls = []
    monkeypatch.setattr(browser, "_install", lambda: calls.append("install"))
    return calls


def test_what_a_desktop_calls_its_browser_is_not_read(program, installations, monkeypatch):
    monkeypatch.setenv("BROWSER", "/no/such/browser")
    assert browser.executable() == str(program)
    browser.main()
    assert installations == []


def test_a_named_browser_that_is_missing_is_said_in_one_line_and_nothing_is_installed(
    program, installations, monkeypatch
):
    monkeypatch.setenv("TOPOPRUNE_BROWSER", "/no/such/chromium")
    with pytest.raises(SystemExit) as stopped:
        browser.main()
    assert str(stopped.value) == (
        "browser.py: TOPOPRUNE_BROWSER names /no/such/chromium, which is no program: correct it, or unset it"
    )
    assert installations == []


def test_without_a_name_and_a_browser_one_is_installed(program, installations):
    program.unlink()
    with pytest.raises(SystemExit, match="found no browser and could not install Chromium: .*TOPOPRUNE_BROWSER=/path"):
        browser.main()
    assert installations == ["install"]


def test_a_program_that_is_no_browser_is_named_with_the_variable_in_one_line(program, monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_BROWSER", str(program))
    with pytest.raises(RuntimeError) as stopped, browser.opened():
        pass
    said = str(stopped.value)
    assert said.startswith(f"{program} does not start (") and "let TOPOPRUNE_BROWSER name a Chromium" in said
    assert "\n" not in said
