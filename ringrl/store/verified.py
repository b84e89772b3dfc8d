"""Whether a store's descriptions are those that were written: store.json, and each array's zarr.json.

They decide how every number is read, and have no checksums of their own. The chunks have: Zarr's crc32c, which is
compared whenever one is read. All of a store's files, chunks too, are in its `SHA256SUMS` (`ringrl.manifest`).
"""

import hashlib
from pathlib import Path

import tensorstore as ts

from ringrl.manifest import MANIFEST, parse
from ringrl.store.metadata import METADATA, unreadable
from ringrl.store.zarr import read_bytes, read_files


def verify_descriptions(path: Path | str, context: ts.Context) -> bool:
    """Compare the descriptions of a store, in a folder or at a URL, with its manifest.

    Returns:
        Whether it has a manifest.

    Raises:
        UserError: one is missing or is not what was written, or the manifest is damaged, or it cannot be read.
    """
    try:
        content = read_bytes(path, MANIFEST, context)
        sums = {} if content is None else parse(content, f"{path}/{MANIFEST}")
        if METADATA not in sums:  # or it is the manifest of another folder, of which the caller says what it is
            return False
        found = read_files(path, [name for name in sums if name.endswith(".json")], context)
    except ValueError as error:
        raise unreadable(path, error) from error
    for name, body in found.items():
        if body is None:
            raise unreadable(path, f"{name} is missing")
        if hashlib.sha256(body).hexdigest() != sums[name]:
            raise unreadable(path, f"{name} has changed since it was written")
    return True
