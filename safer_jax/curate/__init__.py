"""The QI-Box: which prompts are worth training on, by how good and how unstable a policy's own answers are (host code).

    scores      K answers to each prompt, judged     -> Q = mean_k s_k and I = std_k s_k of each prompt
    box         moderate quality, high instability   -> which prompts are kept, and why the others are not
    dataset     the kept prompts                     -> a folder that training reads, with a page (`overview`)
    agreement   this judge against another or people -> agreement, Cohen's kappa, Pearson, with intervals

Source: SaFeR-VLM (arXiv 2510.06871) publishes the rule "moderate quality, high instability" and that 10K of 159K prompts
were kept by it; K, s_k and the limits of the box are this project's.
"""


class CurateError(ValueError):
    """Scores, a selection or labels that cannot be meant: names the thing, its value and the fix."""
