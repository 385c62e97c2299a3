"""The judge that a config names, written down and guarded (host code)."""

from pathlib import Path

from safer_jax import config, verdicts
from safer_jax.judge import JudgeError, endpoint, recorded, rules
from safer_jax.judge.breaker import Breaker
from safer_jax.verdicts import Rubric

KINDS = {
    "rules": lambda settings, rubric: rules.Judge(rubric),
    "http": endpoint.Judge,
    "recorded": lambda settings, rubric: recorded.Judge(settings.path, rubric),
}


def make(
    settings: config.Judge, rubric: Rubric, record_to: str | Path | None = None, local: verdicts.Judge | None = None
) -> verdicts.Judge | None:
    """The judge of `settings.kind` behind a breaker; None for "none".

    `record_to`: a file that gets every verdict, for replay. `local`: the judge of that kind, which needs a device and is
    made elsewhere. Raises JudgeError where the judge cannot be used as it is set up.
    """
    if settings.kind == "none":
        return None
    judge = local if settings.kind == "local" else KINDS[settings.kind](settings, rubric)
    if judge is None:
        raise JudgeError("judge.kind = 'local': no local judge was made; choose another kind")
    if record_to is not None and settings.kind != "recorded":
        judge = recorded.Recorder(judge, record_to)
    return Breaker(judge, settings.max_failed, settings.window)
