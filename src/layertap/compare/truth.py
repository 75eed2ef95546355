"""Compute our own activations of a dump's prompts, in float32.

They come from `layertap.Model`, whose float32 is as close to float64 as transformers' own
(docs/numerics.md). The size is bounded: only taps with the width of an array of the dump, and only
as many tokens as fit in `MEMORY`.
"""

from collections.abc import Sequence

import numpy as np

from layertap.api.model import Model
from layertap.compare.candidates import EMBEDDINGS, FinalNorm, ModelFacts
from layertap.compare.contexts import MOST_TOKENS
from layertap.core.taps import SITES, Tap
from layertap.errors import PromptError
from layertap.model.checkpoint import open_checkpoint
from layertap.prompts.chat import Chat
from layertap.prompts.marked import plain
from layertap.prompts.tokenizer import PromptTokenizer, load_tokenizer

MEMORY = 2 << 30
"""The most bytes for activations of the truth; those of the dump need at most the same again."""
_NORM = "model.norm.weight"
_ROW = 256  # tokens: a row of the usual length, with all taps of thirty layers, takes gigabytes


class TruthReader:
    """The model to compare a dump with; ModelError or PromptError if Layertap cannot run it."""

    def __init__(self, model_path: str, revision: str | None = None, longest: int = MOST_TOKENS) -> None:
        """`longest` is the most tokens that a prompt may have."""
        self._checkpoint = open_checkpoint(model_path, revision)
        self._model = Model(
            model_path,
            revision=revision,
            compute_dtype="float32",
            max_seq_length=longest + MOST_TOKENS,
            row_length=_ROW,
            batch_size=1,
        )
        self.tokenizer = load_tokenizer(self._checkpoint.folder)
        config = self._checkpoint.config
        self.facts = ModelFacts(
            model_path,
            config.num_hidden_layers,
            {site: config.width(site) for site in SITES},
            config.vocab_size,
            self.tokenizer.opening_ids,
            _chat_opening(self.tokenizer),
            self.tokenizer.special_ids,
            config.context,
        )

    def final_norm(self) -> FinalNorm:
        """Read the norm after the last layer; raises ModelError if the checkpoint lacks it."""
        config = self._checkpoint.config
        with self._checkpoint.open_tensors([_NORM]) as tensors:
            scale = tensors[_NORM].read(slice(None)).astype(np.float32)
        return FinalNorm(scale + np.float32(config.offset_norms), config.rms_norm_eps)

    def read(self, prompts: Sequence[np.ndarray], taps: Sequence[Tap]) -> list[dict[Tap, np.ndarray]]:
        """Compute [tokens, width] float32 at each tap, for each prompt's token ids."""
        found: list[dict[Tap, np.ndarray]] = [{} for _ in prompts]
        ids = [prompt.tolist() for prompt in prompts]
        for group in _groups(taps):
            layers, sites = sorted({tap.layer for tap in group}), tuple(dict.fromkeys(tap.site for tap in group))
            for into, sample in zip(
                found, self._model.read(ids, layers=layers, sites=sites, progress=False), strict=True
            ):
                into.update({tap: sample.activation(tap.layer, tap.site) for tap in group})
        return found

    def close(self) -> None:
        """End the model's threads."""
        self._model.close()


def _chat_opening(tokenizer: PromptTokenizer) -> tuple[int, ...]:
    """Return the tokens before a user's message; none if the template refuses such a chat."""
    said = "\N{SNOWMAN}"
    try:
        text = plain(tokenizer.chat.render(Chat(({"role": "user", "content": said},))))
    except PromptError:
        return ()
    return tuple(tokenizer.encode_batch([text.partition(said)[0]])[0].tolist())


def _groups(taps: Sequence[Tap]) -> list[list[Tap]]:
    """Group taps that are read together; the embeddings need no layers."""
    alone = [tap for tap in taps if tap == EMBEDDINGS]
    rest = [tap for tap in taps if tap != EMBEDDINGS]
    return [group for group in (alone, rest) if group]
