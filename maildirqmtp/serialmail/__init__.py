"""serialmail's other programs, as front ends of the same pieces that the forwarder stands on.

Between them: `wire`, what they say to each other.

serialqmtp, which a UCSPI client runs:

    letter         a file, by its name, to something that can be sent
    line, ready    a connection that remembers its end; waiting, for files as well
    conversation   names in, packages out, answers in, results out
    serialqmtp     the command line

maildirserial, which runs clients:

    client         a command that is given names, and writes results
    feeder         one client at work
    journal        what becomes of each message, in serialmail's words
    rounds         client after client, until no message is left to be given
    maildirserial  the command line
"""
