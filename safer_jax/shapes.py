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
    reference: str = ""  # a reference response, empty where the set has none
    licence: str = ""
    use: str = "train"  # train | eval


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
    attempt_PGC: np.ndarray  # int8, the attempt a token belongs to
    is_cut_PGE: np.ndarray  # bool, True where the length limit ended the attempt


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
