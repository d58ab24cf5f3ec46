"""Exit codes of the programs: serialmail's, which are qmail's (qmail-command(8))."""

#: Nothing is left to do.
EXIT_OK = 0
#: Wrong usage or configuration; doing the same again cannot help.
EXIT_USAGE = 100
#: Something is left, or failed; trying again later can help.
EXIT_TEMPORARY = 111
