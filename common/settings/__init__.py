"""The constants at the top of a script: read, overridden by flags, completed by a protocol, checked before any work.

A script's constant NAME is the flag --name, the comment behind it is the flag's help. What can be checked without
torch is checked before torch is imported.
"""

from common.settings.flags import Parser, constants_of
from common.settings.kinds import ABSENT, COUNT, POSITIVE, PROTOCOLS, reader
from common.settings.reading import folder_for, given, read

__all__ = [
    "ABSENT",
    "COUNT",
    "POSITIVE",
    "PROTOCOLS",
    "Parser",
    "constants_of",
    "folder_for",
    "given",
    "read",
    "reader",
]
