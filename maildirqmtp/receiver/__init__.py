"""The receiver, `qmtpmaildir`: a small QMTP server that delivers into a maildir.

    cli -> serving -> connection -> session -> spool -> (filing, maildir)

`session` knows packages and files but no sockets; `connection` and `serving`
know sockets but no packages; `policy` says what is taken, `streams` hides what
kind of connection it is.
"""
