"""Locks between processes, on files."""

import errno
import sys

__all__ = ["try_lock"]


def try_lock(descriptor: int) -> bool:
    """Lock a file that is open for writing; return whether no other process holds it.

    The lock ends with the process, or when the file is closed. Where the system has no locks there is none to
    wait for, and the answer is True.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        # Not flock: loader processes would inherit it, and keep it for a while after the trainer was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
