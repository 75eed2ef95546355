"""The counts of a run's features, kept beside its shards: `features/KEY.safetensors`.

One file holds the sums of a walk so far, and its position. It is replaced as a whole, every half
minute and at the end, so a kill costs half a minute. The counts do not depend on kills, or on when
the file was kept. So the file of a walk that was killed has the same bytes as one that was not.

The key in its name is a digest of the encoder, the tap, the excluded tokens and the rules of
counting: another autoencoder has another file. Inside is a digest of the shards that were read. If
the run has grown since, counting continues. If these shards changed, it starts again. If the file
is corrupt, it says so and starts again: this costs only time. If nothing can be written, features
are counted all the same, and a message says that they are not kept.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from layertap.core.strict_json import dump_json
from layertap.errors import DamageError, LayertapError
from layertap.objects.base import OWNED, ObjectStore
from layertap.objects.content import MemoryContent
from layertap.objects.files import crc32c_of
from layertap.reader.config import BatchConfig
from layertap.reader.shards import Shards
from layertap.sae.answers import GROUPS
from layertap.sae.autoencoder import Autoencoder
from layertap.sae.tally import EDGES, TOP, Place, Tally

_FOLDER = "features"
_VERSION = 1
"""The version of the rules of counting and of the file. A new one counts again."""
_SECONDS = 30.0
"""Seconds between two writes."""
_HEAD = "layertap"


class KeptTally:
    """A tally in a store, which is read once and written now and then."""

    def __init__(self, store: ObjectStore, key: str, shards: Shards, say: Callable[[str], None]) -> None:
        self.name = f"{_FOLDER}/{key[:16]}.safetensors"
        self._place = f"{store.url}/{self.name}"
        self._store, self._key, self._shards, self._say = store, key, shards, say
        self._written = time.monotonic()
        self._writable = True

    def load(self, features: int) -> Tally:
        """Return the kept tally; an empty one if there is none, or if it does not fit."""
        try:
            found = self._store.read(self.name)
            return Tally(features) if found is None else self._parse(found.data, Tally(features))
        except DamageError as error:
            self._say(f"{error}; its features are counted again")
        return Tally(features)

    def keep_now_and_then(self, tally: Tally) -> None:
        """Write the tally, unless that was done recently."""
        if time.monotonic() - self._written >= _SECONDS:
            self.keep(tally)

    def keep(self, tally: Tally) -> None:
        """Write the tally. If that fails, say so once, and write no more."""
        if not self._writable:
            return
        try:
            self._store.put(self.name, MemoryContent([self._bytes(tally)]), replaces=OWNED)
        except (LayertapError, NotImplementedError) as error:  # the latter: fsspec URLs that are read-only
            self._writable = False
            self._say(f"features are counted, and not kept for the next time: {str(error) or self._place}")
        self._written = time.monotonic()

    def _bytes(self, tally: Tally) -> bytes:
        head = {
            "key": self._key,
            "place": list(tally.place),
            "shards": self._digest(tally.place),
            "tokens": tally.tokens,
            "samples": tally.samples,
            "crc32c": _checksum(tally.arrays),
        }
        return save(tally.arrays, {_HEAD: dump_json(head)})

    def _parse(self, data: bytes, tally: Tally) -> Tally:
        """Fill an empty tally, unless other shards were counted. Raises DamageError."""
        try:
            head, arrays = _head(data), load(data)
            place, digest = Place(*head["place"]), head["shards"]
            whole = head["key"] == self._key and head["crc32c"] == _checksum(arrays)
            tokens, samples = int(head["tokens"]), int(head["samples"])
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DamageError(f"{self._place}: cannot be read ({error})") from error
        if not whole or _forms(arrays) != _forms(tally.arrays):
            raise DamageError(f"{self._place}: is not what its checksum and name say")
        if place.shards + (place.steps > 0) > len(self._shards) or digest != self._digest(place):
            return tally
        vars(tally).update(arrays, place=place, tokens=tokens, samples=samples)
        return tally

    def _digest(self, place: Place) -> str:
        """Return the digest of the shards that were read up to `place`."""
        return self._shards.digests[place.shards + (place.steps > 0)]


def key_of(autoencoder: Autoencoder, config: BatchConfig, most: int) -> str:
    """Return a key that is equal if the same numbers would be counted of the same shards. `most` is
    the tokens of a step: the order of sums depends on it.
    """
    told = {
        "version": _VERSION,
        "kind": autoencoder.kind,
        "k": autoencoder.k,
        "normalised": autoencoder.normalised,
        "subtracts_b_dec": autoencoder.subtracts_b_dec,
        "by_decoder_norm": autoencoder.by_decoder_norm,
        "tap": list(config.taps[0]),
        "exclude": sorted(config.exclude),
        "sink_factor": config.sink_factor,
        "groups": [[group.name, *group.values] for group in GROUPS],
        "counts": [TOP, *EDGES.tolist(), most],
    }
    digest = hashlib.sha256(dump_json(told, sort_keys=True).encode())
    for name, array in sorted(autoencoder.weights.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _head(data: bytes) -> dict[str, Any]:
    """Return our own part of the safetensors header; raises ValueError if it is missing."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_HEAD])
    if not isinstance(head, dict):
        raise ValueError("its header holds no object")
    return head


def _forms(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (array.dtype.name, array.shape) for name, array in arrays.items()}


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    return crc32c_of([np.ascontiguousarray(array).data.cast("B") for _, array in sorted(arrays.items())])
