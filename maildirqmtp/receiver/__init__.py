"""The receiver, `qmtpmaildir`: a small QMTP server that delivers into a maildir.

    cli -> server -> connection -> session -> storage, spool -> maildir

`session` knows packages and files but no sockets; `connection` and `server`
know sockets but no packages; `policy` holds what is accepted and the limits,
`streams` hides the kind of connection.
"""
