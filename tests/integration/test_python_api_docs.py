"""The page about the Python interface: its code blocks are one program, and it runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import cast

import pytest

from aether_nats.embedded import EmbeddedServer

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "python-api.md"

pytestmark = pytest.mark.asyncio


def read_program() -> str:
    """Return the blocks as one text whose lines have the numbers that they have on the page."""
    lines = PAGE.read_text().splitlines()
    inside, program = False, []
    for line in lines:
        if line.startswith("```"):
            inside = line == "```python"
            program.append("")
        else:
            program.append(line if inside else "")
    return "\n".join(program)


async def test_the_code_blocks_run_in_order(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    program = read_program()
    assert len(re.findall("await ", program)) > 10
    code = compile(program, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await cast("Coroutine[None, None, None]", eval(code, {"URL": nats_server.url}))
