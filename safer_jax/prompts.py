"""Text and images of a record to one left-padded row of token ids, and ids back to text (host code).

The tokenizer's own chat template is rendered once for each number of images, with marks where our texts go. Texts are
put in after the special tokens have been found, so no text of a data set can write a special token.
"""

import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL
import tokenizers
from transformers import AutoTokenizer

from safer_jax import images, shapes

SYSTEM = (
    "You are a careful assistant that sees images. Look at what a request asks for and at what could come of it: an "
    "image and a text that are harmless alone can be harmful together. Help fully where that is safe. Where it is not, "
    "decline politely and say why."
)
STEP_GUIDE = (
    "First think inside <think> and </think>, in five steps.\n"
    "1. Describe what the image shows.\n"
    "2. Say what risk the image itself carries, then write <visual_safe>safe</visual_safe> or "
    "<visual_safe>unsafe</visual_safe>.\n"
    "3. Say what risk the text itself carries, then write <text_safe>safe</text_safe> or "
    "<text_safe>unsafe</text_safe>.\n"
    "4. Say what risk the image and the text carry together, then write <combined_safe>safe</combined_safe> or "
    "<combined_safe>unsafe</combined_safe>.\n"
    "5. Sum up what the reply should do.\n"
    "Then write the reply inside <answer> and </answer>: a helpful one if the combination is safe, otherwise a polite "
    "refusal that gives the reason. Write nothing after </answer>."
)
THINK_GUIDE = (
    "First think inside <think> and </think>: what the image shows, what is asked, what could come of it, and what the "
    "reply should do. Then write the reply inside <answer> and </answer>: a helpful one where that is safe, otherwise a "
    "polite refusal that gives the reason. Write nothing after </answer>."
)
LETTER = "Write the letter of the right option, and nothing else, inside <answer> and </answer>. Write nothing after </answer>."
SYSTEMS = {"safety": SYSTEM, "none": ""}
GUIDES = {"steps": STEP_GUIDE, "think": THINK_GUIDE, "none": ""}
# For a question with options: the thinking is asked for as ever, the reply is a letter.
LETTER_GUIDES = {name: guide.partition("Then write")[0] + LETTER for name, guide in GUIDES.items()}

THINK = "<think>"
START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
IMAGE = "<|image_pad|>"
NEEDED = (START, END, STOP, "<|vision_start|>", "<|vision_end|>", IMAGE)
SYSTEM_MARK, USER_MARK, ANSWER_MARK = "\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001"


class PromptError(ValueError):
    """A record, text or tokenizer that cannot be used: says which, why and what to do."""


class Encoded(NamedTuple):
    """One row, ready to be collated. s tokens; x patches of an image."""

    id: str
    token_S: np.ndarray  # int32 [s], image placeholders expanded
    images: list[
        tuple[np.ndarray, tuple[int, int]]
    ]  # per image: uint8 [x, 3 * p * p] in transformers' order, (rows, columns)
    image_slot_S: np.ndarray  # int32 [s], the merged vision token of the row's slot layout; -1 at text
    position_3S: np.ndarray  # int32 [3, s]
    next_position: int


class Processor:
    """Encodes records and decodes completions with one tokenizer and one set of texts.

    `geometry` and `images` say how images are cut and limited; `system` and `guide` are texts ("" for none), the guide
    follows the record's prompt in the user's turn, and of a record with options `letter_guide` does; `force_think` ends
    the prompt with "<think>". Image placeholders, template and positions are those of transformers'
    `Qwen2_5_VLProcessor` and `Qwen2_5_VLModel.get_rope_index`.
    Raises PromptError for a tokenizer without chat template or without one of the special tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        images: images.Limits,
        geometry: images.Geometry,
        system: str = SYSTEM,
        guide: str = STEP_GUIDE,
        force_think: bool = False,
        letter_guide: str = "",
    ):
        self.tokenizer, self.limits, self.geometry = tokenizer, images, geometry
        self.system, self.guide, self.force_think = system, guide, force_think
        self.letter_guide = letter_guide
        self._backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # nobody else's settings
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = False
        self._added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        missing = [token for token in NEEDED if token not in self._added]
        if missing:
            raise PromptError(
                f"tokenizer {_name(tokenizer)} lacks {', '.join(missing)}; use Qwen2.5-VL's tokenizer files"
            )
        if not tokenizer.chat_template:
            raise PromptError(f"tokenizer {_name(tokenizer)} has no chat template; put chat_template.jinja beside it")
        self.image_id = self._added[IMAGE]
        self.end_ids = (self._added[END], self._added[STOP])
        self._unknown = tokenizer.unk_token_id
        contents = sorted((token for token in self._added if len(token) > 1), key=len, reverse=True)
        self._any_added = re.compile(f"(?=({'|'.join(map(re.escape, contents))}))")
        self._split_added = re.compile(f"({'|'.join(map(re.escape, contents))})")
        self._skeletons = {(count, 0): self._skeleton(count, 0) for count in range(3)}
        self._turn = self._turn_text()

    def encode(self, record: shapes.Record) -> Encoded:
        """Tokens, patches and positions of a record. Raises PromptError naming the record and image."""
        cut = []
        for data, name in self._named(record):
            try:
                cut.append(images.patches(images.decode(data, self.limits, name), self.geometry, self.limits, name))
            except images.ImageError as error:
                raise PromptError(str(error)) from error
        grids = [grid for _, grid in cut]
        token_S = self._tokens(record, grids)
        is_image_S = token_S == self.image_id
        image_slot_S = np.full(len(token_S), -1, np.int32)
        image_slot_S[is_image_S] = merged_slots(grids, self.geometry)
        position_3S, next_position = positions(token_S, grids, self.geometry.merge, self.image_id)
        return Encoded(record.id, token_S, cut, image_slot_S, position_3S, next_position)

    def size(self, record: shapes.Record) -> tuple[int, int]:
        """(tokens, patch slots) that `encode` will need, reading only the images' headers. Raises PromptError."""
        grids = []
        for data, name in self._named(record):
            try:
                grids.append(images.size(data, self.limits, self.geometry, name))
            except images.ImageError as error:
                raise PromptError(str(error)) from error
        return len(self._tokens(record, grids)), sum(images.window_slots(grid, self.geometry)[1] for grid in grids)

    def encode_completion(self, text: str) -> np.ndarray:
        """int32 ids of a response as the policy would write it, ending in the end token; every id can be sampled.

        With `force_think` the opening "<think>" stands in the prompt, so it is left off here. Raises PromptError if the
        tokenizer has no ids for some character.
        """
        if self.force_think:
            text = text.removeprefix(THINK)
        ids = self._text_ids(text, "completion")
        if self._unknown is not None and self._unknown in ids:
            raise PromptError(f"completion {text[:60]!r}: the tokenizer cannot write all of it; train it on such text")
        return np.array([*ids, self.end_ids[0]], np.int32)

    def encode_turn(self, text: str, opens_answer: bool = True) -> np.ndarray:
        """int32 ids that ask on after a finished answer: a user's turn with `text`, and the opening of the next turn.

        The end token of the answer before is not among them: that answer brings its own. `opens_answer`: what follows is
        an answer, so that `force_think` counts. Raises PromptError.
        """
        ids = []
        for part in self._split_added.split(self._turn + (THINK if opens_answer and self.force_think else "")):
            if part:
                ids += (
                    [self._added[part]] if part in self._added else self._text_ids(part.replace(USER_MARK, text), text)
                )
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of all ids but the end tokens; any other special token stays visible."""
        kept = [int(i) for i in ids if int(i) not in self.end_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def banned_V(self, vocab_size: int) -> np.ndarray:
        """bool [V], True = never sampled: added tokens but the end ones, and ids that the tokenizer does not know.

        Raises PromptError if the tokenizer knows ids beyond the model's vocabulary.
        """
        known = np.array(sorted(set(self.tokenizer.get_vocab().values()) | set(self._added.values())))
        if known[-1] >= vocab_size:
            raise PromptError(
                f"tokenizer {_name(self.tokenizer)} has id {known[-1]}, the model's vocabulary ends at "
                f"{vocab_size - 1}; take the tokenizer files of this model, or its vocab_size"
            )
        banned_V = np.ones(vocab_size, bool)
        banned_V[known] = False
        banned_V[list(self._added.values())] = True
        banned_V[list(self.end_ids)] = False
        return banned_V

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that a row's encoding depends on beside the row."""
        texts = (self.system, self.guide, self.letter_guide, self.tokenizer.chat_template, self._backend.to_str())
        content = (texts, self.force_think, self.limits, self.geometry, PIL.__version__)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def _named(self, record: shapes.Record):
        return [(data, f"row {record.id!r}, image {i + 1}") for i, data in enumerate(record.images)]

    def _tokens(self, record: shapes.Record, grids: Sequence[tuple[int, int]]) -> np.ndarray:
        """Token ids of a row, int32; images before text in the first turn, each as one placeholder per merged token."""
        form, name, ids = (len(grids), len(record.history)), f"row {record.id!r}", []
        if len(record.history) % 2:
            raise PromptError(
                f"{name}: {len(record.history)} turns before the prompt; they are the user's and the assistant's in turn, "
                "the assistant's last"
            )
        if form not in self._skeletons:
            self._skeletons[form] = self._skeleton(*form)
        guide = self.letter_guide if record.choice else self.guide
        turns = iter([*record.history, f"{record.prompt}\n\n{guide}" if guide else record.prompt])
        pads = iter([grid[0] * grid[1] // self.geometry.block for grid in grids])
        for piece in self._skeletons[form]:
            if isinstance(piece, str):
                ids += self._text_ids(piece.replace(USER_MARK, next(turns)), name)
            elif piece == [self.image_id]:
                ids += piece * next(pads)
            else:
                ids += piece
        return np.array(ids, np.int32)

    def _skeleton(self, count: int, before: int) -> list[list[int] | str]:
        """A prompt with `count` images and `before` earlier turns: ids where nothing changes, text with a mark for a turn."""
        user = [{"type": "image"}] * count + [{"type": "text", "text": USER_MARK}]
        messages = [{"role": "user", "content": user}]
        for number in range(before):
            messages.append({"role": ("assistant", "user")[number % 2], "content": USER_MARK})
        if self.system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": SYSTEM_MARK}]})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found = (text.count(USER_MARK), text.count(IMAGE), text.count(SYSTEM_MARK))
        wanted = (1 + before, count, int(bool(self.system)))
        if found != wanted:
            raise PromptError(
                f"tokenizer {_name(self.tokenizer)}: its chat template writes turns, images and system text {found} "
                f"times where {wanted} were given; use the template of Qwen2.5-VL"
            )
        text += THINK if self.force_think else ""
        pieces = []
        for part in self._split_added.split(text):
            if part in self._added:
                pieces.append([self._added[part]])
            elif USER_MARK in part:
                pieces.append(part.replace(SYSTEM_MARK, self.system))
            elif part:
                pieces.append(self._text_ids(part.replace(SYSTEM_MARK, self.system), "chat template"))
        return pieces

    def _turn_text(self) -> str:
        """What the chat template writes after an answer and its end token, up to the answer to a further question."""
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER_MARK}]
        messages = [*said, {"role": "user", "content": USER_MARK}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        turn = text.partition(ANSWER_MARK)[2]
        if not turn.startswith(END) or turn.count(USER_MARK) != 1:
            raise PromptError(
                f"tokenizer {_name(self.tokenizer)}: its chat template continues an answer with {turn[:60]!r} where "
                f"{END} and a user's turn should stand; use the template of Qwen2.5-VL"
            )
        return turn.removeprefix(END)

    def _text_ids(self, text: str, name: str) -> list[int]:
        """Ids of plain text that follows a special token; special tokens written in it come out as ordinary text.

        A special token goes before the text and its id is dropped: some tokenizers treat the very first text otherwise.
        The name of any added token is encoded in two parts, cut behind its first character, so it is never found.
        """
        cuts = [0, *(found.start() + 1 for found in self._any_added.finditer(text)), len(text)]
        ids = []
        for begin, end in itertools.pairwise(cuts):
            if begin < end:
                ids += self._backend.encode(START + text[begin:end], add_special_tokens=False).ids[1:]
        specials = set(ids) & set(self._added.values()) - {self._unknown}
        if specials:
            raise PromptError(
                f"{name}: text {text[:60]!r} still encodes to special tokens {sorted(specials)}; drop the row, or use "
                "a tokenizer whose special tokens are not in its ordinary vocabulary"
            )
        return ids


def load_tokenizer(folder: str) -> Any:
    """transformers' fast tokenizer from local files only, never running code from them. Raises PromptError."""
    missing = [
        name for name in ("tokenizer.json", "tokenizer_config.json") if not (pathlib.Path(folder) / name).is_file()
    ]
    if missing:
        raise PromptError(
            f"no tokenizer in {str(folder)!r}: {' and '.join(missing)} missing; copy the model's files there"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises the base class; what it was is told
        raise PromptError(f"the tokenizer in {str(folder)!r} cannot be read ({error}); copy its files again") from error


def positions(
    token_S: np.ndarray, grids: Sequence[tuple[int, int]], merge: int, image_id: int
) -> tuple[np.ndarray, int]:
    """mRoPE positions of one row, int32 [3, s] (time, height, width), and the position of the token after it.

    Text counts on by one on all axes. An image that begins at n has time n, height n + row, width n + column of the
    merged grid, and the text after it begins at n + max(rows, columns). Equals transformers' `get_rope_index`.
    Raises PromptError where placeholders and grids disagree.
    """
    is_image_S = token_S == image_id
    sides = [(rows // merge, columns // merge) for rows, columns in grids]
    wanted = sum(rows * columns for rows, columns in sides)
    if is_image_S.sum() != wanted:
        raise PromptError(
            f"{is_image_S.sum()} image placeholders for grids {list(grids)}, want {wanted}; encode the row again"
        )
    position_3S = np.empty((3, len(token_S)), np.int32)
    at, position = 0, 0
    for rows, columns in sides:
        begin = at + int(np.argmax(is_image_S[at:]))
        end = begin + rows * columns
        if not is_image_S[begin:end].all():
            raise PromptError(
                f"image placeholders at {begin} are fewer than {rows} x {columns} in a run; encode the row again"
            )
        position_3S[:, at:begin] = position + np.arange(begin - at)
        position += begin - at
        position_3S[0, begin:end] = position
        position_3S[1:, begin:end] = position + np.indices((rows, columns)).reshape(2, -1)
        at, position = end, position + max(rows, columns)
    position_3S[:, at:] = position + np.arange(len(token_S) - at)
    return position_3S, position + len(token_S) - at


def merged_slots(grids: Sequence[tuple[int, int]], geometry: images.Geometry) -> np.ndarray:
    """int32 [y]: where each merged token of a row's images, in reading order, stands in the row's slot layout."""
    slots, first = [np.zeros(0, np.int32)], 0
    for grid in grids:
        slot_X, count = images.window_slots(grid, geometry)
        slots.append((first + slot_X[:: geometry.block]) // geometry.block)
        first += count
    return np.concatenate(slots)


def bucket(n: int, buckets: Sequence[int], setting: str = "prompt.buckets", name: str = "the batch") -> int:
    """The smallest bucket that holds n. Raises PromptError naming what does not fit and the setting to raise."""
    fitting = [size for size in buckets if size >= n]
    if not fitting:
        raise PromptError(
            f"{name} needs {n} slots, the largest of {setting} is {max(buckets)}; raise {setting} or drop the row"
        )
    return min(fitting)


def collate(
    rows: Sequence[Encoded], draws: Sequence[int], prompt_slots: int, patch_slots: int, geometry: images.Geometry
) -> shapes.Prompts:
    """Rows to numpy arrays of fixed shape: P = rows, S = prompt_slots, X = patch_slots. Prompts end at slot S-1.

    Images stand one after the other in the layout of `images.window_slots`. A row that does not fit is never cut:
    raises PromptError naming it, its length and the setting to raise.
    """
    rank, values = len(rows), 3 * geometry.patch**2
    if len(draws) != rank:
        raise PromptError(f"{rank} rows but {len(draws)} draw numbers; give one for each row")
    prompts = shapes.Prompts(
        token_PS=np.zeros((rank, prompt_slots), np.int32),
        is_prompt_PS=np.zeros((rank, prompt_slots), bool),
        position_P3S=np.zeros((rank, 3, prompt_slots), np.int32),
        next_position_P=np.array([row.next_position for row in rows], np.int32),
        image_slot_PS=np.full((rank, prompt_slots), -1, np.int32),
        pixel_PXI=np.zeros((rank, patch_slots, values), np.uint8),
        patch_position_PX2=np.zeros((rank, patch_slots, 2), np.int32),
        segment_PX=np.zeros((rank, patch_slots), np.int32),
        draw_P=np.array(draws, np.int32),
    )
    for i, row in enumerate(rows):
        begin = prompt_slots - len(row.token_S)
        if begin < 0:
            raise PromptError(
                f"row {row.id!r}: the prompt has {len(row.token_S)} tokens, the batch {prompt_slots} slots; raise "
                "prompt.buckets, lower prompt.max_pixels or drop the row"
            )
        prompts.token_PS[i, begin:] = row.token_S
        prompts.is_prompt_PS[i, begin:] = True
        prompts.position_P3S[i, :, begin:] = row.position_3S
        prompts.image_slot_PS[i, begin:] = row.image_slot_S
        _place(row, geometry, prompts.pixel_PXI[i], prompts.patch_position_PX2[i], prompts.segment_PX[i])
    return prompts


def _place(
    row: Encoded, geometry: images.Geometry, pixel_XI: np.ndarray, patch_position_X2: np.ndarray, segment_X: np.ndarray
) -> None:
    """Write a row's images into its slots."""
    needed = sum(images.window_slots(grid, geometry)[1] for _, grid in row.images)
    if needed > len(segment_X):
        raise PromptError(
            f"row {row.id!r}: its images need {needed} patch slots, the batch has {len(segment_X)}; raise "
            "prompt.patch_buckets, lower prompt.max_pixels or drop the row"
        )
    first = 0
    for number, (image_XI, grid) in enumerate(row.images, start=1):
        slot_X, count = images.window_slots(grid, geometry)
        pixel_XI[first + slot_X] = image_XI
        patch_position_X2[first + slot_X] = images.patch_positions(grid, geometry)
        segment_X[first + slot_X] = number
        first += count


def _name(tokenizer: Any) -> str:
    return repr(tokenizer.name_or_path) if tokenizer.name_or_path else type(tokenizer).__name__
