"""Passwords that a configuration names and never holds: in a file, else in an environment variable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mesp.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def read_password(section: str, environment: str, file: Path | None) -> str:
    """The password of the configuration's `section`; `InputError` where there is none."""
    if file is None:
        password, where = os.environ.get(environment, ""), f"environment variable {environment}"
    else:
        where = f"{section}.password_file = {file}"
        try:
            password = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: cannot be read ({type(error).__name__})") from None
    if not password:
        raise InputError(f"{where} holds no password for {section}: put it there")
    return password
