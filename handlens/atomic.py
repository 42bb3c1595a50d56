"""Files and folders that are written whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, error: type[Exception], **options) -> Iterator[IO]:
    """A new file that takes the place of `path` when the block ends well, and vanishes when it does not.

    `options` are those of `open` (binary without any). A failure to write is raised as `error` with the reason.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x" if options else "xb", **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as failure:
        raise error(f"{path} cannot be written: {failure.strerror or failure}") from failure
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def appearing(folder: Path, error: type[Exception]) -> Iterator[Path]:
    """A new folder that stands at `folder` when the block ends well, and vanishes when it does not.

    Nothing, or an empty folder, may be there before. A failure to write is raised as `error` with the reason.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as failure:
        raise error(f"{folder} cannot be written: {failure.strerror or failure}") from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
