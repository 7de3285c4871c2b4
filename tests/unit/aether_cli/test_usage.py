"""What the command line says to wrong usage and to Ctrl-C: before anything is connected, with the way out, never a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from aether_cli import demo, main, send


def test_without_a_command_the_list_of_commands_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in main.COMMANDS)


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["sned"]) == 2
    assert "'sned'" in capsys.readouterr().err


def test_ctrl_c_ends_any_command_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: Sequence[str]) -> int:
        raise KeyboardInterrupt

    module = ModuleType("interrupted")
    module.__dict__["run"] = interrupted
    monkeypatch.setitem(sys.modules, "interrupted", module)
    monkeypatch.setitem(main.COMMANDS, "wait", ("interrupted", ""))
    assert main.main(["wait"]) == 130


@pytest.mark.parametrize("field", ["amount", "=100", ""])
def test_a_field_without_name_or_value_is_wrong_usage(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        send.run(["account/alice", "Deposit", "--set", field])
    assert ended.value.code == 2
    assert "FIELD=VALUE" in capsys.readouterr().err


def test_a_url_that_is_none_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        send.run(["account/alice", "Deposit", "--nats", "foo://bar"])
    assert ended.value.code == 2
    assert "'foo://bar' is not the URL of a NATS server" in capsys.readouterr().err


WRONG_USAGE = [
    ("send", ("alice", "Deposit"), "write MODEL/ID"),
    ("send", ("account/a.b", "Deposit"), "id 'a.b' must be"),
    ("send", ("account/alice", "Bad-Name"), "command 'Bad-Name' must"),
    ("send", ("account/alice", "Deposit", "--id", ""), "command_id must be 1 to 128 printable characters, not ''"),
    ("send", ("account/alice", "Deposit", "--durable", "--id", ""), "command_id must be 1 to 128 printable characters, not ''"),
    ("send", ("account/alice", "Deposit", "--timeout", "-1"), "timeout_s must be a number of seconds above 0"),
    ("send", ("account/alice", "Deposit", "--expect-version", "-1"), "expected_version must be a whole number"),
    ("history", ("Account/alice",), "model 'Account' must be"),
    ("history", ("account/alice", "--namespace", "a.b"), "namespace 'a.b' must be"),
    ("inbox", ("alice",), "write MODEL/ID"),
    ("inbox", ("--namespace", "a.b"), "namespace 'a.b' must be"),
    ("status", ("account/",), "id '' must be"),
    ("status", ("--namespace", "a.b"), "namespace 'a.b' must be"),
    ("dead", ("list", "alice"), "write MODEL/ID"),
    ("dead", ("retry", "account/alice", "--all", "--nats", "foo://bar"), "'foo://bar' is not the URL"),
    ("demo", ("--commands", "-1"), "--commands must be at least 1, not -1"),
    ("demo", ("--commands", "0"), "--commands must be at least 1, not 0"),
]


@pytest.mark.parametrize(("command", "arguments", "why"), WRONG_USAGE)
def test_what_can_be_no_name_or_value_is_wrong_usage_of_any_command(command: str, arguments: Sequence[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([command, *arguments])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_the_demo_names_a_folder_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.run(["--folder", "no-such-folder"])
    assert ended.value.code == 2
    assert "no-such-folder" in capsys.readouterr().err


def test_the_first_process_of_a_container_ends_at_sigterm_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops signals that such a process has no handler for; what it does here, where it is not the first one, shows that it has one."""

    def starting(arguments: Sequence[str]) -> int:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("SIGTERM was not taken")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    module = ModuleType("starting")
    module.__dict__["run"] = starting
    monkeypatch.setitem(sys.modules, "starting", module)
    monkeypatch.setitem(main.COMMANDS, "serve", ("starting", ""))
    try:
        with pytest.raises(SystemExit) as ended:
            main.main(["serve"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == main.EXIT_TERMINATED
