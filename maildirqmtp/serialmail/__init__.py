"""serialmail's other programs, as front ends of the same pieces that the forwarder stands on.

wire           what the two say to each other: names one way, results the other
letter         a file, by its name, to something that can be sent
line, ready    a connection that remembers its end; waiting for files, too
conversation   names in, packages out, answers in, results out
serialqmtp     the command line of the program that a UCSPI client runs
feeder         a client at work: names to it, results from it
journal        what becomes of each message, as serialmail tells it
rounds         client after client, until nothing is left to be given
maildirserial  the command line of the program that runs clients
"""
