"""Judges, one module each: what asks a model or a file, or reads tags, and returns a `Verdict` per attempt (host code)."""


class JudgeError(ValueError):
    """A judge that cannot be used as it is set up: names the setting and the fix."""
