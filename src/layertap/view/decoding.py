"""Token ids as text, if the tokenizer is available; otherwise the preview stored with each sample.

Nothing is downloaded to look at a shard. The tokenizer comes from a folder, or from a Hub id that
is in this machine's cache. The manifest has the digest of the run's tokenizer, so a different one
is noticed and named.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from layertap.errors import PromptError, UsageError
from layertap.prompts.tokenizer import PromptTokenizer, find_tokenizer
from layertap.shards.manifest import Manifest
from layertap.view.shard import SampleSeen


@dataclass(frozen=True, eq=False)
class Decoder:
    """Turns token ids into text. `remark` says where the text comes from, or why there is none."""

    remark: str
    _tokenizer: PromptTokenizer | None

    def text(self, sample: SampleSeen) -> str:
        """Return the sample's text, or its preview."""
        return sample.words.text_preview if self._tokenizer is None else self._decode(sample.token_ids, self._tokenizer)

    def token(self, token_id: int) -> str | None:
        """Return the text of one token; None where there is no tokenizer."""
        return None if self._tokenizer is None else self._decode([token_id], self._tokenizer)

    @staticmethod
    def _decode(ids: Iterable[int], tokenizer: PromptTokenizer) -> str:
        return tokenizer.decode(
            id_ for id_ in ids if id_ >= 0
        )  # the library ignores unknown ids, but not negative ones


def find_decoder(manifest: Manifest, model_path: str | None) -> Decoder:
    """Return a decoder with the run's tokenizer, or with the one that the user names instead.

    Raises UsageError or PromptError where the user names something without a tokenizer.
    """
    try:
        tokenizer = find_tokenizer(manifest.model_path if model_path is None else model_path)
    except (UsageError, PromptError) as error:
        if model_path is not None:
            raise
        return Decoder(
            "as stored, at most the first 200 characters, and tokens only as ids, because the run's tokenizer was not"
            f" found ({error}); give --model_path",
            None,
        )
    place = f"decoded by the tokenizer of {manifest.model_path if model_path is None else model_path}"
    if tokenizer.digest != manifest.identity.get("prompts", {}).get("tokenizer"):
        place += ", whose files are not those that the run had: the text may not be what the model read"
    return Decoder(place, tokenizer)
