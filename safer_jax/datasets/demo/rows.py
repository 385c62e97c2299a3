"""The rows of the demo set, in order, from nothing but the seed (host code)."""

from collections.abc import Iterator

import numpy as np

from safer_jax.datasets.demo import LICENCE, questions, rules, scenes
from safer_jax.shapes import UNSAFE, Record

_TWO_OBJECTS = 0.25  # the share of object scenes with a second, everyday object
# The share of compositional rows with a reference response. As in real sets, risks that only image and text together
# have are seldom demonstrated: a warm start must leave them to the reward.
_JOINT_REFERENCES = 0.05


def rows(split: str) -> Iterator[Record]:
    """The records of a split, train | test; images are PNG files."""
    for number, cell in enumerate(rules.draw_cells(split)):
        rng = np.random.default_rng([rules.SEED, len(split), 1, number])
        yield _row(rng, f"demo/{split}/{number:06d}", split, cell)


def _row(rng: np.random.Generator, name: str, split: str, cell: rules.Cell) -> Record:
    kinds, noun = (cell.kind,), ""
    if cell.kind in rules.NOTES:
        noun = str(rng.choice(rules.nouns(cell.kind, split)))
        drawing = scenes.note(rng, (cell.kind, "THE", noun))
    else:
        if rng.random() < _TWO_OBJECTS:
            kinds += (str(rng.choice([kind for kind in rules.EVERYDAY if kind != cell.kind])),)
        drawing = scenes.scene(rng, kinds)
    question = questions.question(rng, cell.intent)
    tags, category = rules.tags(cell), rules.category(cell)
    reference = questions.reference(rng, cell, kinds, noun, drawing.colour)
    is_demonstrated = category != "compositional" or split == "test" or rng.random() < _JOINT_REFERENCES
    # Draws of its own: without demonstrations the rows would be the same.
    own = np.random.default_rng([rules.SEED, len(split), 2, int(name[-6:])])
    flawed = questions.flawed(own, cell, kinds, noun, drawing.colour) if is_demonstrated else ""
    return Record(
        id=name,
        source="demo",
        images=(drawing.png,),
        prompt=question,
        image_tag=tags.image,
        text_tag=tags.text,
        combine_tag=tags.combine,
        expected="refuse" if tags.combine == UNSAFE else "comply",
        category=category,
        reference=reference if is_demonstrated else "",
        flawed=flawed,
        reflection=questions.reflection(own, cell) if flawed else "",
        licence=LICENCE,
        use="train" if split == "train" else "eval",
    )
