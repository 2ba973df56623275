"""Files that are there whole or not at all."""

import json
import os
import uuid
from typing import Any

from etils import epath


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file through a temporary one beside it.

    Args:
      path: the file; what it held is replaced. Its directory exists.
      content: what it will hold.

    Raises:
      OSError: the file could not be written; what it held is still there.
    """
    path = epath.Path(path)
    if path.as_posix().startswith(("gs://", "s3://")):  # an object appears when it is complete
        path.write_bytes(content)
        return
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else the rename can reach the disk before the content does
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes indented JSON with sorted keys, atomically.

    Args:
      path: the file.
      value: what `json` can write; no NaN.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())
