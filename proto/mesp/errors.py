"""Errors that a user sees as one sentence, and the exit codes they carry.

A command turns a `MespError` into ``error: <sentence>`` on stderr and its exit code; anything else is a bug
and keeps its traceback.
"""

from __future__ import annotations


class MespError(Exception):
    """Something failed for a reason the user can act on (exit code 1)."""

    exit_code = 1


class InputError(MespError):
    """Bad input: names the file, key, row and value, and what is allowed (exit code 2)."""

    exit_code = 2


class MissingExtraError(MespError):
    """A part that is not installed; the message names the extra to install (exit code 3)."""

    exit_code = 3


class UnavailableError(MespError):
    """A service that does not answer, or a port that is taken; retrying may help (exit code 4)."""

    exit_code = 4
