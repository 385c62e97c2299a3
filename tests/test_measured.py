"""measured.py: what a row needs is measured once, remembered by content, and never for another row or processor."""

import dataclasses

import pytest

from safer_jax import measured, prompts
from safer_jax.shapes import Record


class Processor:
    """Needs a token a letter and four patch slots an image, and counts what it encodes."""

    def __init__(self, digest="one"):
        self.digest, self.encoded = digest, []

    def encode(self, record):
        self.encoded.append(record.id)
        if record.prompt == "bad":
            raise prompts.PromptError("bad")

    def size(self, record):
        return len(record.prompt) + 100 * bool(record.choice), 4 * len(record.images)


def record(**fields):
    return Record(**{"id": "a", "source": "rows", "images": (b"x",), "prompt": "how", **fields})


def test_a_second_start_encodes_nothing_and_finds_the_same(tmp_path):
    first = measured.Sizes(one := Processor(), tmp_path, "set")
    rows = [
        record(),
        record(images=(b"x", b"y")),
        record(prompt="what"),
        record(choice="A"),
        record(history=("q", "r")),
    ]
    found = [first(row) for row in rows]
    assert found == [(3, 4), (3, 8), (4, 4), (103, 4), (3, 4)] and len(one.encoded) == 5
    first.save()
    second = measured.Sizes(two := Processor(), tmp_path, "set")
    assert [second(row._replace(id="b", category="c")) for row in rows] == found and two.encoded == []
    assert second(record(images=(b"z",))) == (3, 4) and two.encoded == ["a"], "another image is another row"


def test_another_set_or_processor_remembers_nothing(tmp_path):
    first = measured.Sizes(Processor(), tmp_path, "set")
    first(record())
    first.save()
    for processor, name in ((Processor("two"), "set"), (Processor(), "other")):
        measured.Sizes(processor, tmp_path, name)(record())
        assert processor.encoded == ["a"]


def test_what_cannot_be_encoded_is_tried_again(tmp_path):
    sizes = measured.Sizes(processor := Processor(), tmp_path, "set")
    for _ in range(2):
        with pytest.raises(prompts.PromptError):
            sizes(record(prompt="bad"))
    assert len(processor.encoded) == 2
    sizes.save()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', '{"a": ["x", 2]}'])
def test_a_damaged_file_is_made_anew(content, tmp_path, capsys):
    sizes = measured.Sizes(Processor(), tmp_path, "set")
    sizes(record())
    sizes.save()
    (path,) = (tmp_path / "sizes").iterdir()
    whole = path.read_bytes()
    path.write_text(content)
    again = measured.Sizes(processor := Processor(), tmp_path, "set")
    assert f"{path}: damaged" in capsys.readouterr().err
    again(record())
    again.save()
    assert processor.encoded == ["a"] and path.read_bytes() == whole


def test_the_processors_digest_is_of_all_its_settings():
    from test_prompts import GEOMETRY, LIMITS, TOKENIZER

    of = lambda limits=LIMITS, geometry=GEOMETRY, *rest: prompts.Processor(TOKENIZER, limits, geometry, *rest).digest
    larger = dataclasses.replace(LIMITS, max_pixels=LIMITS.max_pixels + 1)
    merged = dataclasses.replace(GEOMETRY, window=2 * GEOMETRY.window)
    same = (LIMITS, GEOMETRY)
    others = [of(larger), of(LIMITS, merged), of(*same, "s"), of(*same, "", "g"), of(*same, "", "", True)]
    others += [of(*same, "", ""), of(*same, "", "", False, "l")]
    assert of() == of() and len({of(), *others}) == 8
