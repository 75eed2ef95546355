"""The tokenizer of a checkpoint, with only the `tokenizers` library.

It guarantees exactly the ids of `transformers.AutoTokenizer(text, add_special_tokens=False)`,
without importing transformers, which takes seconds and loads much that prompts do not need.
`tokenizer.json` decides the ids. Three things could break the guarantee, so loading handles them:
truncation and padding are switched off; BPE dropout is refused, because it is random; a
`tokenizer_config.json` is refused if it names added tokens that `tokenizer.json` does not have.

If the vocabulary is of bytes and the text is ASCII, the characters of each token follow from the
lengths of the tokens, and the sum of the lengths confirms it. Otherwise we ask the library for the
offsets, which takes three times as long.

The library encodes a batch on all cores and releases the interpreter lock meanwhile
(`TOKENIZERS_PARALLELISM=false` limits it to one core). Its encodings need many times the memory of
the ids. So a batch is encoded in pieces, and each becomes arrays of 4 bytes per token before the
next one begins.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64
from tokenizers import Tokenizer, decoders

from layertap.errors import PromptError, UsageError
from layertap.prompts.chat import ChatTemplate, load_chat_template
from layertap.prompts.marked import plain

_TEXTS_AT_ONCE = 128
_FILE_NAME = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class PromptTokenizer:
    """Turns texts into token ids, and conversations into texts."""

    digest: str
    """SHA-256, in hex, of the bytes of `tokenizer.json` and of all that decides chat text."""
    vocab_size: int
    """One more than the largest id. A model may have more embedding rows."""
    ordinary_size: int
    """The same, without added tokens."""
    special_ids: frozenset[int]
    """Ids of tokens such as `<|im_start|>`, which mark structure, not text."""
    opening_ids: tuple[int, ...]
    """The tokens that the tokenizer puts before every text, such as Llama's BOS; none for Qwen."""
    chat: ChatTemplate
    _tokenizer: Tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
        """Return the ids of each text, not extended, truncated or padded. Texts must be valid
        Unicode.
        """
        ids = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            piece = list(texts[start : start + _TEXTS_AT_ONCE])
            encodings = self._tokenizer.encode_batch_fast(piece, add_special_tokens=False)
            ids += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return ids

    def encode_marked(
        self, texts: Sequence[str]
    ) -> list[tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, "tokens 2"]]]:
        """Return the same ids, and the range of characters of each token (begin, end)."""
        unmarked = [plain(text) for text in texts]
        found = []
        for text, ids in zip(unmarked, self.encode_batch(unmarked), strict=True):
            ends = np.cumsum(self._token_lengths(ids)) if text.isascii() else np.zeros(1, np.int64)
            if ids.size and ends[-1] == len(text):
                found.append((ids, np.stack([np.append(0, ends[:-1]), ends], axis=1)))
            else:
                found.append((ids, self._offsets(text)))
        return found

    def added_beyond(self, rows: int) -> list[str]:
        """Return the added tokens whose ids an embedding with this many rows lacks."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [token.content for id_, token in added.items() if id_ >= rows]

    def _token_lengths(self, ids: Int32[np.ndarray, " tokens"]) -> Int64[np.ndarray, " tokens"]:
        """Return the length of each token in bytes if the vocabulary is of bytes; else 0."""
        unknown = np.unique(ids[self._lengths[ids] < 0])
        if len(unknown):
            self._lengths[unknown] = _byte_lengths(self._tokenizer, unknown.tolist())
        return self._lengths[ids]

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, " vocabulary"]:
        """Lengths of the tokens seen so far, -1 for the others: computing all takes half a
        second.
        """
        return np.full(self.vocab_size, -1, np.int64)

    def _offsets(self, text: str) -> Int64[np.ndarray, "tokens 2"]:
        """Return the library's own offsets, which take three times as long."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, including special tokens."""
        return str(self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False))


def load_tokenizer(folder: Path) -> PromptTokenizer:
    """Load the tokenizer in a checkpoint folder, with its config and chat template if it has them.

    Raises PromptError, which names the file, if one is missing, malformed or contradicts another.
    """
    path = folder / _FILE_NAME
    serialized = _read_bytes(path)
    tokenizer = _parse(serialized, path)
    config = _read_config(folder / "tokenizer_config.json")
    _check_added_tokens(tokenizer, config, folder)
    chat = load_chat_template(folder, config)
    added = tokenizer.get_added_tokens_decoder()
    ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
    return PromptTokenizer(
        digest=sha256(sha256(serialized).digest() + chat.digest.encode("ascii")).hexdigest(),
        vocab_size=1 + max(ids),
        ordinary_size=1 + max(ids - set(added), default=-1),
        special_ids=frozenset(id_ for id_, token in added.items() if token.special),
        opening_ids=_opening_ids(tokenizer),
        chat=chat,
        _tokenizer=tokenizer,
    )


def find_tokenizer(model_path: str) -> PromptTokenizer:
    """Load the tokenizer of a folder, or of a Hub id or id@revision in this machine's cache.

    Nothing is downloaded. Raises UsageError if this machine does not have it, PromptError if it is
    invalid.
    """
    from huggingface_hub import try_to_load_from_cache  # a fifth of a second

    try:
        folder = Path(model_path).expanduser()
        if folder.is_dir():
            return load_tokenizer(folder)
        hub_id, _, revision = model_path.partition("@")
        cached = try_to_load_from_cache(hub_id, _FILE_NAME, revision=revision or None)
    except (OSError, ValueError, RuntimeError):  # no permission; not a Hub id; `~` names an unknown user
        cached = None
    if not isinstance(cached, str):
        raise UsageError(f"{model_path} is neither a folder nor a Hub id whose {_FILE_NAME} is in this machine's cache")
    return load_tokenizer(Path(cached).parent)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PromptError(
            f"{path}: no such file; save the tokenizer with transformers' `save_pretrained`, which writes it"
        ) from error
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error}") from error


def _parse(serialized: bytes, path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(serialized)
    except ValueError as error:
        raise PromptError(f"{path}: is not a tokenizer: {error}") from error
    if getattr(tokenizer.model, "dropout", None):
        raise PromptError(f"{path}: BPE dropout is set, which makes the tokens random; set model.dropout to null")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _byte_lengths(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Return the length of each token in bytes; 0 if the tokens of a text are not just its
    bytes.
    """
    if not _keeps_bytes(tokenizer):
        return [0] * len(ids)
    added = tokenizer.get_added_tokens_decoder()
    return [  # in the vocabulary, each character of a token represents a byte
        len(added[number].content.encode()) if number in added else len(tokenizer.id_to_token(number) or "")
        for number in ids
    ]


def _keeps_bytes(tokenizer: Tokenizer) -> bool:
    """Return whether the tokens of a text are exactly its bytes."""
    splitting = "" if tokenizer.pre_tokenizer is None else tokenizer.pre_tokenizer.__getstate__().decode()
    adds = '"add_prefix_space":true' in splitting.replace(" ", "")
    takes = any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
    return isinstance(tokenizer.decoder, decoders.ByteLevel) and not adds and not takes


def _opening_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer adds before a text, if any."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    added = tokenizer.encode("a").ids
    places = [at for at in range(len(added)) if added[at : at + len(plain)] == plain]
    return tuple(added[: places[0]]) if places else ()


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # it does not decide ids, and a checkpoint without a chat template may lack it
    except (OSError, ValueError) as error:
        raise PromptError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise PromptError(f"{path}: holds a {type(config).__name__}, not an object")
    return config


def _check_added_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse missing added tokens. transformers would add them, but only mixed checkpoints lack
    any.
    """
    known = {str(id_): token.content for id_, token in tokenizer.get_added_tokens_decoder().items()}
    match config.get("added_tokens_decoder", {}):
        case dict() as named:
            missing = {id_: token for id_, token in named.items() if known.get(id_) != _content(token)}
        case _:
            raise PromptError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is not an object")
    if missing:
        raise PromptError(
            f"{folder}: tokenizer_config.json names {len(missing)} added tokens that tokenizer.json does not have, such"
            f" as {_content(next(iter(missing.values())))!r}; take both files from the same checkpoint"
        )


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token
