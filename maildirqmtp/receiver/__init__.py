"""The receiver, `qmtpmaildir`: a small QMTP server that delivers into a maildir.

    cli -> server -> connection -> session -> delivery -> destination -> maildir

`session` knows packages but no sockets, `destination` says what a place for mail can do; `connection` and `server`
know sockets but no packages; `policy` holds what is accepted and the limits,
`streams` hides the kind of connection.
"""
