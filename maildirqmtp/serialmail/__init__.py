"""serialmail's other programs, built from the forwarder's modules.

`wire` is the language between them.

serialqmtp, which a UCSPI client runs:

    open_file      a file name to a message with its envelope
    recording      a transport that keeps the reason why it ended
    poller         waiting for descriptors, including files
    conversation   names in, packages out, responses in, results out
    serialqmtp     the command line

maildirserial, which runs clients:

    client         a command that reads names and writes results
    feeder         names to one client, results from it
    client_loop    client after client, until no message is left
    report         the log, in serialmail's words
    maildirserial  the command line
"""
