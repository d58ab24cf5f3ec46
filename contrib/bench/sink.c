/*
 * sink [-a] [-p PORT] [-r K|Z|D] [-n N]: a QMTP server that throws everything away, for benchmarks.
 *
 * Listens on 127.0.0.1 (-a: any address; port 0: any) and prints the port. Answers "Kok" for every recipient; with
 * -r Z or -r D, "Zlater" or "Dnever" instead, for every recipient or (-n N) every Nth. Up to
 * CONNECTIONS at a time. On SIGTERM it prints what it counted to stderr and exits.
 *
 * Nothing blocks: input is parsed as it comes, responses wait in a buffer of OUT_SIZE bytes, and a
 * connection whose buffer is full is not parsed or read from until some of it could be written.
 * Responses are written when there is nothing more to read for the moment or FLUSH_AT bytes wait.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS 64
#define IN_SIZE (256 * 1024)
#define OUT_SIZE (4 * 1024 * 1024) /* holds the responses of a client that reads them at the end */
#define FLUSH_AT (32 * 1024)
#define LENGTH_MAX 1000000000000ULL
#define TURNS 64 /* reads in a row before the other connections get their turn */

/* Where in a package the next byte belongs; in this order, but for the loop over recipients. */
enum place {
    MESSAGE_LENGTH,
    ENCODING,
    MESSAGE,
    MESSAGE_END,
    SENDER_LENGTH,
    SENDER,
    SENDER_END,
    LIST_LENGTH,
    NEXT_RECIPIENT,
    RECIPIENT_LENGTH,
    RECIPIENT,
    RECIPIENT_END,
    LIST_END,
    ANSWER,
};

struct connection {
    int fd;
    enum place place;
    int digits;                /* read so far of the length being read */
    unsigned long long length; /* being read, then what is left of that netstring */
    unsigned long long list;   /* bytes left in the list of recipients */
    unsigned long long unanswered;
    bool ended, broken, waits_to_write;
    size_t in_start, in_end, out_start, out_end;
    char *in, *out;
};

static struct {
    unsigned long long packages, recipients, message_bytes, connections, cut, broken;
} total;

static const char *response = "3:Kok,";
static unsigned long long every = 1;
static volatile sig_atomic_t stop;

static void on_term(int signal_number)
{
    (void)signal_number;
    stop = 1;
}

/* Takes one byte of "length:". True once the colon was there; a wrong byte marks it broken. */
static bool length_done(struct connection *c, char byte)
{
    if (byte >= '0' && byte <= '9') {
        if ((c->digits > 0 && c->length == 0) || c->length > LENGTH_MAX)
            c->broken = true;
        c->length = c->length * 10 + (unsigned)(byte - '0');
        c->digits++;
        return false;
    }
    if (byte != ':' || c->digits == 0)
        c->broken = true;
    c->digits = 0;
    return !c->broken;
}

static void begin_length(struct connection *c, enum place place)
{
    c->length = 0;
    c->digits = 0;
    c->place = place;
}

/* Takes the byte that ends a netstring. */
static void expect_comma(struct connection *c, char byte, enum place next)
{
    if (byte != ',')
        c->broken = true;
    begin_length(c, next);
}

/* Passes over as much of the netstring's text as is here. */
static void skip(struct connection *c, enum place next)
{
    size_t here = c->in_end - c->in_start;

    if (c->length < here)
        here = (size_t)c->length;
    c->in_start += here;
    c->length -= here;
    if (c->place == RECIPIENT)
        c->list -= here;
    if (c->length == 0)
        c->place = next;
}

/* Every byte of a recipient's netstring also counts against the list's. */
static void recipient_byte(struct connection *c, char byte)
{
    if (c->list == 0) {
        c->broken = true;
        return;
    }
    c->list--;
    if (c->place == RECIPIENT_LENGTH) {
        if (length_done(c, byte)) {
            c->place = c->length > 0 ? RECIPIENT : RECIPIENT_END;
            if (c->length >= c->list)
                c->broken = true;
        }
    } else {
        c->unanswered++;
        expect_comma(c, byte, NEXT_RECIPIENT);
    }
}

static void take_byte(struct connection *c, char byte)
{
    switch (c->place) {
    case MESSAGE_LENGTH:
        if (length_done(c, byte)) {
            c->place = ENCODING;
            if (c->length == 0)
                c->broken = true;
        }
        break;
    case ENCODING:
        if (byte != '\n' && byte != '\r')
            c->broken = true;
        c->length--;
        total.message_bytes += c->length;
        c->place = c->length > 0 ? MESSAGE : MESSAGE_END;
        break;
    case MESSAGE_END:
        expect_comma(c, byte, SENDER_LENGTH);
        break;
    case SENDER_LENGTH:
        if (length_done(c, byte))
            c->place = c->length > 0 ? SENDER : SENDER_END;
        break;
    case SENDER_END:
        expect_comma(c, byte, LIST_LENGTH);
        break;
    case LIST_LENGTH:
        if (length_done(c, byte)) {
            c->list = c->length;
            begin_length(c, NEXT_RECIPIENT);
        }
        break;
    case LIST_END:
        expect_comma(c, byte, ANSWER);
        if (!c->broken)
            total.packages++;
        break;
    default:
        recipient_byte(c, byte);
    }
}

/* Moves what is not yet written to the buffer's start. False: that does not help. */
static bool make_room(struct connection *c, size_t length)
{
    size_t waiting = c->out_end - c->out_start;

    if (c->out_start < OUT_SIZE / 2 || waiting + length > OUT_SIZE)
        return false;
    memmove(c->out, c->out + c->out_start, waiting);
    c->out_start = 0;
    c->out_end = waiting;
    return true;
}

/* Puts what responses fit into the buffer. False: it is full, the rest must wait. */
static bool answer(struct connection *c)
{
    for (; c->unanswered > 0; c->unanswered--) {
        const char *text = (total.recipients + 1) % every == 0 ? response : "3:Kok,";
        size_t length = strlen(text);

        if (c->out_end + length > OUT_SIZE && !make_room(c, length))
            return false;
        memcpy(c->out + c->out_end, text, length);
        c->out_end += length;
        total.recipients++;
    }
    begin_length(c, MESSAGE_LENGTH);
    return true;
}

/* Parses what is in the buffer, until it is empty, broken, or responses do not fit any more. */
static void parse(struct connection *c)
{
    while (!c->broken) {
        if (c->place == ANSWER) {
            if (!answer(c))
                return;
        } else if (c->place == NEXT_RECIPIENT) {
            c->place = c->list > 0 ? RECIPIENT_LENGTH : LIST_END;
        } else if (c->in_start == c->in_end) {
            return;
        } else if (c->place == MESSAGE) {
            skip(c, MESSAGE_END);
        } else if (c->place == SENDER) {
            skip(c, SENDER_END);
        } else if (c->place == RECIPIENT) {
            skip(c, RECIPIENT_END);
        } else {
            take_byte(c, c->in[c->in_start++]);
        }
    }
}

/* Writes what the socket takes. False: the connection is gone. */
static bool flush(struct connection *c)
{
    c->waits_to_write = false;
    while (c->out_start < c->out_end) {
        ssize_t sent =
            send(c->fd, c->out + c->out_start, c->out_end - c->out_start, MSG_NOSIGNAL);

        if (sent < 0 && errno == EAGAIN) {
            c->waits_to_write = true;
            return true;
        }
        if (sent < 0)
            return false;
        c->out_start += (size_t)sent;
    }
    c->out_start = c->out_end = 0;
    return true;
}

/* Reads, parses and answers what can be without waiting. False: the connection is over. */
static bool serve(struct connection *c)
{
    for (int turn = 0; turn < TURNS; turn++) {
        parse(c);
        if (c->broken)
            c->ended = true;
        if ((c->ended || c->place == ANSWER || c->out_end >= FLUSH_AT) && !c->waits_to_write)
            if (!flush(c))
                return false;
        if (c->ended && (c->broken || c->place != ANSWER))
            return c->out_end > 0;
        if (c->place == ANSWER || c->ended) {
            if (c->waits_to_write)
                return true;
            continue; /* there is room again */
        }
        if (turn == TURNS - 1)
            break; /* what is read now would not be parsed before more comes */
        ssize_t got = recv(c->fd, c->in, IN_SIZE, 0);
        if (got < 0 && errno == EAGAIN)
            return c->waits_to_write || flush(c);
        if (got < 0)
            return false;
        c->in_start = 0;
        c->in_end = (size_t)got;
        c->ended = got == 0;
    }
    return c->waits_to_write || flush(c);
}

static void close_connection(struct connection *c)
{
    if (c->broken)
        total.broken++;
    else if (c->place != MESSAGE_LENGTH || c->digits > 0 || c->out_end > 0)
        total.cut++;
    close(c->fd);
    free(c->in);
    free(c->out);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

static void accept_one(int listener, struct connection *c)
{
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->fd = fd;
    c->in = malloc(IN_SIZE);
    c->out = malloc(OUT_SIZE);
    if (c->in == NULL || c->out == NULL)
        err(111, "malloc");
    total.connections++;
}

static int listen_on(int port, in_addr_t host)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        err(111, "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    address.sin_addr.s_addr = htonl(host);
    address.sin_port = htons((uint16_t)port);
    if (bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 64) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        err(111, "listen on port %d", port);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

/* Returns the socket to listen on. */
static int options(int argc, char **argv)
{
    int option, port = 0;
    in_addr_t host = INADDR_LOOPBACK;

    while ((option = getopt(argc, argv, "ap:r:n:")) != -1) {
        if (option == 'a')
            host = INADDR_ANY;
        else if (option == 'p')
            port = atoi(optarg);
        else if (option == 'n' && atoll(optarg) > 0)
            every = (unsigned long long)atoll(optarg);
        else if (option == 'r' && strcmp(optarg, "Z") == 0)
            response = "6:Zlater,";
        else if (option == 'r' && strcmp(optarg, "D") == 0)
            response = "6:Dnever,";
        else if (option != 'r' || strcmp(optarg, "K") != 0)
            errx(100, "usage: sink [-a] [-p PORT] [-r K|Z|D] [-n N]");
    }
    return listen_on(port, host);
}

static void catch_term(sigset_t *before)
{
    struct sigaction action = {.sa_handler = on_term};
    sigset_t term;

    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, before);
    sigdelset(before, SIGTERM);
    sigaction(SIGTERM, &action, NULL);
}

/* Waits until something can be done, then does it, for every connection and the listener. */
static void one_round(int listener, struct connection *all, const sigset_t *while_waiting)
{
    struct pollfd polled[CONNECTIONS + 1];
    struct connection *vacant = NULL;

    for (int i = 0; i < CONNECTIONS; i++) {
        polled[i].fd = all[i].fd;
        polled[i].events = all[i].waits_to_write ? POLLOUT : 0;
        if (!all[i].ended && all[i].place != ANSWER)
            polled[i].events |= POLLIN;
        if (all[i].fd < 0)
            vacant = &all[i];
    }
    polled[CONNECTIONS].fd = vacant != NULL ? listener : -1;
    polled[CONNECTIONS].events = POLLIN;
    if (ppoll(polled, CONNECTIONS + 1, NULL, while_waiting) < 0) {
        if (errno != EINTR)
            err(111, "poll");
        return;
    }
    for (int i = 0; i < CONNECTIONS; i++) {
        if (all[i].fd < 0 || polled[i].revents == 0)
            continue;
        if ((all[i].waits_to_write && !flush(&all[i])) || !serve(&all[i]))
            close_connection(&all[i]);
    }
    if (polled[CONNECTIONS].fd >= 0 && polled[CONNECTIONS].revents & POLLIN)
        accept_one(listener, vacant);
}

int main(int argc, char **argv)
{
    static struct connection all[CONNECTIONS];
    sigset_t while_waiting;
    int listener;

    catch_term(&while_waiting);
    for (int i = 0; i < CONNECTIONS; i++)
        all[i].fd = -1;
    listener = options(argc, argv);
    while (!stop)
        one_round(listener, all, &while_waiting);
    fprintf(stderr,
            "packages=%llu recipients=%llu message_bytes=%llu connections=%llu cut=%llu "
            "broken=%llu\n",
            total.packages, total.recipients, total.message_bytes, total.connections, total.cut,
            total.broken);
    return 0;
}
