"""What prompts need in tokens and patch slots, measured by encoding them, remembered by their content (host code).

To encode a row is to decode its images, which finds those that are cut short, and takes most of the time of a start.
What a row was found to need stands in a file below `data.root` for each set and processor, so that a resumed run, and the
next of a sweep, only reads the rows. A row's key is the SHA-256 of its texts and images: a changed row is measured anew.
Rows that cannot be encoded are not remembered; they are few.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from safer_jax import prompts
from safer_jax.shapes import Record


class Sizes:
    """(prompt tokens, patch slots) of a record that can be encoded; threads may share it. Raises what encoding raises."""

    def __init__(self, processor: prompts.Processor, root: str | Path, name: str):
        key = hashlib.sha256(f"{name} {processor.digest}".encode()).hexdigest()[:16]
        self._processor, self._path = processor, Path(root).expanduser() / "sizes" / f"{key}.json"
        self._known, self._seen = _load(self._path), {}

    def __call__(self, record: Record) -> tuple[int, int]:
        pictures = [hashlib.sha256(image).digest() for image in record.images]
        content = (record.prompt, record.history, bool(record.choice), pictures)
        key = hashlib.sha256(repr(content).encode()).hexdigest()[:32]
        if key not in self._known:
            self._processor.encode(record)
            self._known[key] = self._processor.size(record)
        self._seen[key] = found = tuple(self._known[key])
        return found

    def save(self) -> None:
        """Write what was asked for, if there is anything new."""
        if self._path.is_file() and self._seen.keys() <= _load(self._path).keys():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, suffix=".partial", delete=False) as file:
            json.dump(self._seen, file)
        os.replace(file.name, self._path)


def over(record: Record, tokens: int, patches: int, max_tokens: int, max_patches: int) -> str:
    """Why a row that needs this much fits no bucket, many images included; "" where it fits."""
    if tokens > max_tokens:
        return f"{record.id}: the prompt needs {tokens} tokens, prompt.buckets end at {max_tokens}; add one"
    if patches > max_patches:
        count = f"{len(record.images)} images" if len(record.images) > 1 else "image"
        return (
            f"{record.id}: its {count} need{'s' * (len(record.images) < 2)} {patches} patch slots, prompt.patch_buckets end "
            f"at {max_patches}; raise it or lower prompt.max_pixels"
        )
    return ""


def _load(path: Path) -> dict[str, tuple[int, int]]:
    """What was remembered; nothing where there is no such file or it is damaged: then it is made anew."""
    try:
        return {key: (int(tokens), int(patches)) for key, (tokens, patches) in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"{path}: damaged ({error}), made anew", file=sys.stderr)
        return {}
