"""The receiver, `qmtpmaildir`: a small QMTP server that delivers into a maildir or a queue.

    cli -> server -> connection -> session -> delivery -> destination -> maildir

`session` knows packages but no sockets; `connection` and `server` know sockets
but no packages; `policy` says what is accepted from whom and holds the limits;
`clients` identifies a client; `streams` hides the kind of connection.
"""
