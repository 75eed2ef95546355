"""The features of an autoencoder, packed for the page: gzip of a JSON header and of numbers.

They are compact: a few thousand features take a few hundred kilobytes.

    4 bytes     the length of the header, little-endian
    header      JSON, in UTF-8, padded with spaces to a multiple of eight bytes
    counts      [features, 1 + bins + values]: at how many tokens each fires, its histogram, and at
                how many tokens of each value of each group; uint32, or float64 where they need it
    numbers     int32 [features, 2]: the feature's number, and the value that says most about it
    codes       uint16 [features, 2]: mean where it fires, and largest value, as in `codes`

Counts are exact, and the page divides them. So its shares and lifts have the table's digits.
"""

import base64
import gzip
import struct
from collections.abc import Sequence

import numpy as np

from layertap.core.strict_json import dump_json
from layertap.sae.table import FeatureTable
from layertap.view.html.codes import encode
from layertap.view.html.interest import LEAST, Strongest


def pack_features(name: str, table: FeatureTable, strongest: Strongest, listed: Sequence[int]) -> str:
    """Pack the features that are `listed`, in base64. `name` is the autoencoder's on the page."""
    rows = np.array(listed, np.int64)
    groups = [table.label_active[group.name][rows] for group in table.groups]
    counts = np.concatenate([table.active[rows, None], table.histogram[rows], *groups], axis=1)
    wide = bool(counts.max(initial=0) >= 2**32)
    header = dump_json(_header(name, table, len(rows), wide=wide)).encode()
    header += b" " * (-(4 + len(header)) % 8)
    numbers = np.stack([rows, strongest.value[rows]], axis=1)
    codes = encode(np.stack([table.means[rows], table.largest[rows].astype(np.float64)], axis=1))
    content = (
        struct.pack("<I", len(header)),
        header,
        counts.astype("<f8" if wide else "<u4").tobytes(),
        numbers.astype("<i4").tobytes(),
        codes.astype("<u2").tobytes(),
    )
    return base64.b64encode(gzip.compress(b"".join(content), mtime=0)).decode("ascii")


def _header(name: str, table: FeatureTable, listed: int, *, wide: bool) -> dict[str, object]:
    return {
        "name": name,
        "layer": table.tap.layer,
        "site": table.tap.site,
        "tokens": table.tokens,
        "samples": table.samples,
        "features": len(table.active),
        "listed": listed,
        "edges": [float(edge) for edge in table.edges],
        "groups": [
            {"name": group.name, "values": list(group.values), "tokens": table.label_tokens[group.name].tolist()}
            for group in table.groups
        ],
        "least": LEAST,
        "wide": wide,
    }
