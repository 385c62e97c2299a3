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

VOCAB = 512  # ids at most: bytes, tags, learned pieces and special tokens together
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
_NOT_IN_UTF8 = set("\u00c0\u00c1") | {chr(code) for code in range(0xF5, 0x100)}  # bytes that no text holds
TAG_PIECES = tuple(
    f"<{slash}{name}>"
    for name in ("think", "visual_safe", "text_safe", "combined_safe", "answer")
    for slash in ("", "/")
)
_ROLES = ("system", "user", "assistant")
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
    """A tokenizer of at most VOCAB ids for the texts, special tokens first; the same texts give the same tokenizer."""
    alphabet = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - _NOT_IN_UTF8)
    pieces = [*TAG_PIECES, *_ROLES, *_words(texts)][: VOCAB - len(SPECIAL) - len(alphabet)]
    # Nearly equal scores: a text becomes the fewest pieces, the frequent ones first, bytes as a last resort. Special
    # tokens are no pieces of text: at their score any other spelling wins.
    vocab = [(token, -1e6) for token in SPECIAL] + [(letter, -20.0) for letter in alphabet]
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


def _words(texts: Iterable[str]) -> list[str]:
    """The texts' words, with the space before them, spelled in the byte alphabet, the most frequent first.

    Whole words, as sentencepiece counts them: on so few words its unigram model keeps halves of them.
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
        model_type="word",
        vocab_size=VOCAB,
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
    return [spell(piece)[0][0] for piece in found if len(piece) > 1]
