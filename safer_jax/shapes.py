"""Dimension legend and the carriers of the data path, each a NamedTuple whose leading axis is the batch (array code).

A suffix names an array's axes; the same letters stand in einsum strings and in annotations:

    P prompts            G rollouts per prompt    E attempts per rollout   B rows (P*G flattened)
    S prompt slots       C completion slots       L packed length S + G*C  T query positions     M cache slots
    D width              F feed-forward width     V vocabulary             Z stacked layers
    N query heads        K key/value heads        R = N // K               H head size
    X patch slots        Y = X / merge^2 merged   W vision width           U slots of a window   I values of a patch

`dataset -> Record -> Prompts -> Rollout -> reward -> advantage -> Batch -> update`: each stage takes the carrier before
it and returns the next.
"""

from typing import Any, NamedTuple

import numpy as np

SAFE, UNSAFE, UNKNOWN = "safe", "unsafe", "unknown"
TAGS = (SAFE, UNSAFE, UNKNOWN)
EXPECTED = ("refuse", "warn", "comply", "any")

# What a completion slot holds. Everything above FORCED was sampled by the policy.
EMPTY, FORCED, ANSWER, REFLECTION, CORRECTION = range(5)


class Record(NamedTuple):
    """One row of any data set, normalised (host): what is asked, what is true of it, where it came from."""

    id: str
    source: str
    images: tuple[bytes, ...]  # encoded files, decoded only by images.decode
    prompt: str
    image_tag: str = UNKNOWN
    text_tag: str = UNKNOWN
    combine_tag: str = UNKNOWN
    expected: str = "any"
    category: str = ""
    reference: str = ""  # a reference response, empty where the set has none; never a remark about the row
    flawed: str = ""  # a response that should be rejected, and
    reflection: str = ""  # what leads from it to the reference; both empty where the set has none
    licence: str = ""
    use: str = "train"  # train | eval
    history: tuple[
        str, ...
    ] = ()  # turns before the prompt, the user's and the assistant's by turns; images are in the first
    choice: str = ""  # the right option's letter; empty where the prompt is no multiple choice


class Prompts(NamedTuple):
    """What the policy is asked. Prompts are padded on the left, so slot S-1 is every row's last token.

    The patches of a row's images stand window by window, each window padded to U slots, so window attention is a plain
    batched attention; `segment_PX` is 0 at empty slots and counts the row's images from 1.
    """

    token_PS: np.ndarray  # int32, image placeholders expanded
    is_prompt_PS: np.ndarray  # bool, True at real tokens
    position_P3S: np.ndarray  # int32, mRoPE (time, height, width); 0 at padding
    next_position_P: np.ndarray  # int32, the position of the first completion token
    image_slot_PS: np.ndarray  # int32, which merged vision token of Y stands here; -1 at text and padding
    pixel_PXI: np.ndarray  # uint8, a patch flattened as (channel, row, column)
    patch_position_PX2: np.ndarray  # int32, (row, column) in the image's patch grid
    segment_PX: np.ndarray  # int32
    draw_P: np.ndarray  # int32, the number of the draw in the global order: the root of the row's random keys


class Rollout(NamedTuple):
    """What the policy wrote: G rows per prompt, each one sequence of forced and sampled tokens, filled from the left."""

    token_PGC: np.ndarray  # int32
    logp_PGC: np.ndarray  # float32, the sampler's log-probability of a sampled token, 0 elsewhere
    role_PGC: np.ndarray  # int8, EMPTY .. CORRECTION
    attempt_PGC: np.ndarray  # int8, the attempt a token belongs to; a reflection belongs to its correction's
    is_cut_PGE: np.ndarray  # bool, True where the length limit ended the attempt
    verdict_PGEJ: (
        np.ndarray
    )  # float32, the judge's J numbers; NaN where there is no attempt or no verdict; J = 0: no judge

    @property
    def is_answer_PGC(self) -> np.ndarray:
        """bool, True at the tokens of answers and corrections."""
        return (self.role_PGC == ANSWER) | (self.role_PGC == CORRECTION)

    @property
    def is_attempt_PGE(self) -> np.ndarray:
        """bool, True where an attempt was made: an answer or correction of at least one token stands there."""
        attempts = range(self.is_cut_PGE.shape[-1])
        return np.stack([(self.is_answer_PGC & (self.attempt_PGC == e)).any(-1) for e in attempts], -1)


class Layout(NamedTuple):
    """The slots of a row: an answer, then for every rerun its instruction, reflection, header and correction.

    A forced part keeps one slot for the end token of a row that was cut, and ends at its last slot, so what is sampled
    next follows it directly. Holes before it are EMPTY: positions count valid tokens, never slots.

        | answer 1 ....... | end instruction | reflection ... | end header | correction ... |
          t t t t t _ _ _    _   i i i i i     r r r r _ _      _   h h      c c c c c c _
    """

    answer: int
    instruction: int = 0  # with its end slot; 0 = no reruns
    reflection: int = 0  # 0 = the instruction asks for the correction, and there is no header
    header: int = 0  # with its end slot
    reruns: int = 0

    @property
    def rerun(self) -> int:
        """The slots of one rerun."""
        return self.instruction + self.reflection + self.header + self.answer

    @property
    def completion(self) -> int:
        """C, all slots of a row."""
        return self.answer + self.reruns * self.rerun

    def start(self, attempt: int) -> int:
        """Where rerun `attempt` (from 1) begins."""
        return self.answer + (attempt - 1) * self.rerun


class Written(NamedTuple):
    """Tokens of some slots, with what each is."""

    token: np.ndarray  # int32
    logp: np.ndarray  # float32, 0 where not sampled
    role: np.ndarray  # int8


class Rejected(NamedTuple):
    """Rows that are asked again, gathered out of their groups: a fixed number B of them."""

    row_B: np.ndarray  # int32, p * G + g; P * G at rows that only fill up
    is_row_B: np.ndarray  # bool
    token_B: np.ndarray  # int32, the last sampled token
    is_cut_B: np.ndarray  # bool, True where the length limit ended the last attempt
    length_B: np.ndarray  # int32, valid tokens of the row so far
    forced_BF: np.ndarray  # int32, the instruction's ids, right-aligned
    is_forced_BF: np.ndarray  # bool


class Batch(NamedTuple):
    """What an update consumes: prompts, their completions and what each token is worth."""

    prompts: Prompts
    token_PGC: np.ndarray  # int32
    is_valid_PGC: np.ndarray  # bool, True where a token stands (it can be attended to)
    is_trained_PGC: np.ndarray  # bool, True where the loss falls
    advantage_PGC: np.ndarray  # float32, the advantage of the token's attempt
    sampler_logp_PGC: np.ndarray  # float32, from the sampler
    old_logp_PGC: np.ndarray  # float32, from the trainer before the first minibatch; unread with one minibatch
    ref_logp_PGC: np.ndarray  # float32, of the frozen reference; unread when beta is 0


class TrainState(NamedTuple):
    """All that a training step changes; with the reference it is all that a checkpoint holds."""

    params: Any  # nnx.State of the policy, float32 masters
    opt_state: Any
    step: Any  # int32 scalar: optimizer-facing steps finished, warm start included
    cursor: Any  # int32 scalar: the next draw of the global order
    skipped: Any  # int32 scalar: updates not applied because a gradient was not finite
    skipped_in_a_row: Any  # int32 scalar
