"""What a script says in one line instead of a traceback."""

import sysconfig
import traceback
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong and what to do."""


class RunFailed(UserError):
    """One run that cannot be made or read: no reason to stop the others of a study."""


class Damaged(RunFailed):
    """A file of a run that is not whole."""


def told(error: BaseException) -> str:
    """An error that code of one's own may have raised, in one line: its kind, its first line, and the file and line of
    the innermost code that it came through which is neither a library's nor common's."""
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path, libraries = Path(frame.filename), (Path(__file__).parent, sysconfig.get_path("stdlib"))
        installed = {"site-packages", "dist-packages"} & {*path.parts} or any(map(path.is_relative_to, libraries))
        if path.is_file() and not installed:
            return f"{text} ({path.name}, line {frame.lineno})"
    return text
