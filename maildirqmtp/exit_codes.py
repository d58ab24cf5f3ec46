"""Exit codes of the programs: serialmail's, which are qmail's (qmail-command(8)); sysexits(3)."""

from typing import NamedTuple

#: Nothing is left to do.
EXIT_OK = 0
#: Wrong usage or configuration; doing the same again cannot help.
EXIT_USAGE = 100
#: Something is left, or failed; trying again later can help.
EXIT_TEMPORARY = 111

# sysexits(3), as sendmail, Postfix and Exim give and expect them.

#: The command line is wrong.
EX_USAGE = 64
#: The message, or an address in it, is wrong.
EX_DATAERR = 65
#: There is no such user.
EX_NOUSER = 67
#: The mail system does not take the message, for some other reason.
EX_UNAVAILABLE = 69
#: Trouble on this machine; trying again later can help.
EX_TEMPFAIL = 75
#: The caller may not do that.
EX_NOPERM = 77
#: The configuration is wrong.
EX_CONFIG = 78


class ExitCodes(NamedTuple):
    """A program's exit codes for wrong usage, a wrong message, and trouble that may pass."""

    usage: int
    data: int
    temporary: int


QMAIL = ExitCodes(EXIT_USAGE, EXIT_USAGE, EXIT_TEMPORARY)
SYSEXITS = ExitCodes(EX_USAGE, EX_DATAERR, EX_TEMPFAIL)
