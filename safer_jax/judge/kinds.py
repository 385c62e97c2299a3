"""The judge that a config names, written down and guarded (host code)."""

from pathlib import Path

from safer_jax import config, verdicts
from safer_jax.judge import JudgeError, endpoint, recorded, rules
from safer_jax.judge.breaker import Breaker
from safer_jax.verdicts import Rubric

LOCAL = ("local", "score")  # on the run's own devices; made above this package and passed in

KINDS = {
    "rules": lambda settings, rubric, local: rules.Judge(rubric),
    "http": lambda settings, rubric, local: endpoint.Judge(settings, rubric),
    "recorded": lambda settings, rubric, local: recorded.Judge(settings.path, rubric),
    **dict.fromkeys(LOCAL, lambda settings, rubric, local: local),
}


def make(
    settings: config.Judge, rubric: Rubric, record_to: str | Path | None = None, local: verdicts.Judge | None = None
) -> verdicts.Judge | None:
    """The judge of `settings.kind`, behind a breaker unless it is local; None for "none".

    `record_to`: a file that gets every verdict, for replay. `local`: the judge of a local kind, which needs devices and
    is made elsewhere. Raises JudgeError where the judge cannot be used as it is set up.
    """
    if settings.kind == "none":
        return None
    judge = KINDS[settings.kind](settings, rubric, local)
    if judge is None:
        raise JudgeError(f"judge.kind = {settings.kind!r}: no local judge was made; choose another kind")
    if settings.kind in LOCAL:
        # A call is a collective: what asks one process's judge more or less often than another's, as a recorder does
        # that knows an answer or a breaker that asks by windows, would hang them all. There is no line to be down either.
        return judge
    if record_to is not None and settings.kind != "recorded":
        judge = recorded.Recorder(judge, record_to)
    return Breaker(judge, settings.max_failed, settings.window)
