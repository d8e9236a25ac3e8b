"""What a script says in one line instead of a traceback."""


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong and what to do."""


class RunFailed(UserError):
    """One run that cannot be made or read: no reason to stop the others of a study."""


class Damaged(RunFailed):
    """A file of a run that is not whole."""
