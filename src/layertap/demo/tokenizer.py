"""A tokenizer in the manner of Qwen 2.5, trained on the spot.

Everything that decides how text is cut is as in Qwen 2.5: NFC, its split pattern (one token per
digit, words with their leading space), bytes beneath, no prefix space, its added tokens after the
base vocabulary. Only the merges are our own and few, so that the embedding of a tiny model is tiny
too. The price: words take more tokens than with the real one, while a grid takes exactly as many.

Training is deterministic: ties between merges are broken by token id, and the 256 byte symbols have
fixed ids.
"""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from layertap.errors import PromptError
from layertap.objects.files import atomic_write

_FILES = resources.files("layertap.demo")

# The pattern belongs to a Qwen vocabulary: with another pattern the same text has other ids.
_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen 2.5's settings, the control tokens among them. These are added after the base vocabulary, in
# the order of their ids, and then those that can appear in what a model says.
_SETTINGS: dict[str, Any] = json.loads(_FILES.joinpath("tokenizer_config.json").read_text(encoding="utf-8"))
_CONTROL_TOKENS = (_SETTINGS["pad_token"], *_SETTINGS["additional_special_tokens"])
_SPOKEN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_SMALLEST = 256 + len(_CONTROL_TOKENS) + len(_SPOKEN_TOKENS)


def demo_texts() -> list[str]:
    """A few pages about grids, in the words that prompts and sample documents are likely to use.

    Grids themselves are left out: every digit is a token of its own whatever the texts say.
    """
    return [_FILES.joinpath(name).read_text(encoding="utf-8") for name in ("prose.txt", "headings.txt")]


def write_tokenizer(folder: Path, texts: Iterable[str], vocab_size: int = 768) -> int:
    """Train on `texts` and write tokenizer.json and tokenizer_config.json into `folder`.

    Returns the size, added tokens included: `vocab_size`, or less where the texts are too poor to
    fill it. The same texts give the same bytes. Raises PromptError where `vocab_size` cannot hold
    the 256 bytes and the added tokens.
    """
    if vocab_size < _SMALLEST:
        raise PromptError(f"vocab_size {vocab_size} is too small: 256 bytes and the added tokens take {_SMALLEST}")
    tokenizer = _train(texts, vocab_size - len(_CONTROL_TOKENS) - len(_SPOKEN_TOKENS))
    with atomic_write(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    with atomic_write(folder / "tokenizer_config.json") as file:
        template = _FILES.joinpath("chat_template.jinja").read_text(encoding="utf-8")
        file.write(json.dumps({**_SETTINGS, "chat_template": template}, indent=2).encode())
    return int(tokenizer.get_vocab_size(with_added_tokens=True))


def _train(texts: Iterable[str], base_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    options = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(**options),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(**options)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=base_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _SPOKEN_TOKENS])
    return tokenizer
