"""Token ids as text, where the tokenizer is at hand; else the preview that is stored with each
sample.

Nothing is downloaded in order to look at a shard: the tokenizer is that of a folder, or of a Hub id
that this machine has in its cache. The manifest knows the run's tokenizer by its digest, so another
one is told apart, and named.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from layertap.errors import PromptError, UsageError
from layertap.prompts.tokenizer import PromptTokenizer, find_tokenizer
from layertap.shards.manifest import Manifest
from layertap.view.shard import SampleSeen


@dataclass(frozen=True, eq=False)
class Decoder:
    """Text of token ids; `remark` says where it comes from, or why there is none."""

    remark: str
    _tokenizer: PromptTokenizer | None

    def text(self, sample: SampleSeen) -> str:
        """The sample's text, or the preview of it."""
        return sample.words.text_preview if self._tokenizer is None else self._decode(sample.token_ids, self._tokenizer)

    def token(self, token_id: int) -> str | None:
        """The text of one token; None where there is no tokenizer."""
        return None if self._tokenizer is None else self._decode([token_id], self._tokenizer)

    @staticmethod
    def _decode(ids: Iterable[int], tokenizer: PromptTokenizer) -> str:
        return tokenizer.decode(
            id_ for id_ in ids if id_ >= 0
        )  # the library ignores unknown ids, but for negative ones


def find_decoder(manifest: Manifest, model_path: str | None) -> Decoder:
    """The decoder of the run's tokenizer, or of the one that the user names instead.

    Raises UsageError or PromptError where there is no tokenizer in what the user names.
    """
    try:
        tokenizer = find_tokenizer(manifest.model_path if model_path is None else model_path)
    except (UsageError, PromptError) as error:
        if model_path is not None:
            raise
        return Decoder(
            "as stored, at most the first 200 characters, and tokens as ids alone, because the run's tokenizer is not"
            f" at hand ({error}); give --model_path",
            None,
        )
    place = f"decoded by the tokenizer of {manifest.model_path if model_path is None else model_path}"
    if tokenizer.digest != manifest.identity.get("prompts", {}).get("tokenizer"):
        place += ", whose files are not those that the run had: the text may not be what the model read"
    return Decoder(place, tokenizer)
