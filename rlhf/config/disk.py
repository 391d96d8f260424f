"""What a disk says that cannot be written, in words that tell which file and how much room there is."""

import errno
import shutil
from pathlib import Path

# A disk that is full, and one that cannot be written.
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def disk_problem(error: OSError, directory: Path) -> str:
    """Return what the disk said, and of which file, or of something in a `directory` where the error names no file; of a
    full disk also how much is free."""
    path, said = Path(error.filename or directory), error.strerror or str(error)
    if error.errno not in FULL:
        return f"{said}: {path}"
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return f"{said}: {path} ({shutil.disk_usage(there).free / 2**20:.1f} MiB are free there)"
