"""A small tokenizer for the demo set: pieces by sentencepiece, carried as a transformers tokenizer (host code).

Text is seen as bytes (as Qwen's tokenizer does), so every text has an encoding and decodes to itself; the pieces that
sentencepiece found in the demo set's texts, and the tags of the response format, stand above the 256 bytes.
"""

import io
import re
from collections.abc import Iterable

import sentencepiece
import tokenizers
import transformers

VOCAB = 768  # most ids: bytes, learned pieces and special tokens; a model of this vocabulary has room for them all
PAD, END = "<|endoftext|>", "<|im_end|>"
SPECIAL = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAG_PIECES = tuple(
    f"<{slash}{name}>"
    for name in ("think", "visual_safe", "text_safe", "combined_safe", "answer")
    for slash in ("", "/")
)
# Qwen2.5-VL's layout: a turn is <|im_start|>role, new line, content, <|im_end|>, new line; an image is one placeholder.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- else -%}
{{ raise_exception('A message part must be text or image, not ' + part['type']) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def train(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of at most VOCAB ids for the texts; the same texts give the same tokenizer."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    room = VOCAB - len(SPECIAL) - len(alphabet) - len(TAG_PIECES)
    pieces = [*TAG_PIECES, *_learn(texts, room)]
    # Nearly equal scores: a text becomes the fewest pieces, of those the ones learned first, bytes as a last resort.
    vocab = [(letter, -20.0) for letter in alphabet]
    vocab += [(piece, -10.0 - rank * 1e-4) for rank, piece in enumerate(pieces)]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=None))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[token for token in SPECIAL if token not in (PAD, END)],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _learn(texts: Iterable[str], room: int) -> list[str]:
    """Up to `room` pieces of words, each spelled in the byte alphabet, the most useful first.

    Byte pairs, not sentencepiece's unigram model: on a few hundred words that model keeps half of each word.
    """
    lines = []
    for text in texts:
        for tag in TAG_PIECES:
            text = text.replace(tag, "\n")
        lines += [line for line in re.split(r"[^\w ]", text) if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB + room,  # more than there is room for: letters are among them
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    spell = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    ids = [index for index in range(trained.get_piece_size()) if not trained.is_control(index)]
    found = [trained.id_to_piece(index).replace("\u2581", " ") for index in ids if not trained.is_unknown(index)]
    return [spell(piece)[0][0] for piece in found if len(piece) > 1][:room]
