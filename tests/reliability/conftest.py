"""What the tests of reliability share: one warm process for all commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.commands import Commands


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("printed"))
    yield commands
    commands.close()
