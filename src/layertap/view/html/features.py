"""The features of an autoencoder as the page unpacks them: gzip of a header in JSON and of numbers,
compact, so that a few thousand features take a few hundred kilobytes.

    4 bytes     how long the header is, little-endian
    header      JSON, in UTF-8, filled up with spaces to a multiple of eight bytes
    counts      [features, 1 + bins + values]: at how many tokens each fires, its histogram, and at
                how many tokens of each value of each group; uint32, or float64 where they need it
    numbers     int32 [features, 2]: which feature it is, and the value that tells most about it
    codes       uint16 [features, 2]: mean where it fires, and largest value, as in `codes`

Counts are exact; the page divides them, so shares and lifts have the digits of the table's.
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
    """The features that are `listed`, in base64; `name` is what the page calls the autoencoder."""
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
