/*
 * reference MAILDIR PORT: the least work by which a maildir can be sent over QMTP.
 *
 * For every file in MAILDIR/new: open, fstat, read, close, one send of one package, unlink. The
 * package holds the file as it is, with a fixed envelope. Nothing else: no envelope is looked for,
 * nothing is sorted, no response is looked at, nothing is fsynced. What maildirqmtp takes beyond
 * this is the price of Python and of losing nothing.
 *
 * Responses are only read at the end, so the server has to hold those of the whole run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEAD_MAX 32 /* room for "length:" and the encoding byte before the file's text */

static const char envelope[] = ",18:sender@example.org,20:16:user@example.net,,";

static int connect_to(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        err(111, "socket");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)atoi(port));
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        err(111, "connect to port %s", port);
    return fd;
}

static void send_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);

        if (sent < 0)
            err(111, "send");
        data += sent;
        length -= (size_t)sent;
    }
}

static void read_all(int fd, char *data, size_t length, const char *name)
{
    while (length > 0) {
        ssize_t got = read(fd, data, length);

        if (got < 0)
            err(111, "read %s", name);
        if (got == 0)
            errx(111, "%s shrank while it was read", name);
        data += got;
        length -= (size_t)got;
    }
}

/* Sends one file as one package. The buffer is kept from call to call and grows as needed. */
static void send_file(int to, int directory, const char *name, char **buffer, size_t *room)
{
    char head[HEAD_MAX];
    struct stat status;
    size_t size, head_length, need;
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        err(111, "open %s", name);
    if (fstat(fd, &status) < 0)
        err(111, "fstat %s", name);
    size = (size_t)status.st_size;
    need = HEAD_MAX + size + sizeof envelope;
    if (need > *room) {
        *room = need * 2;
        free(*buffer);
        *buffer = malloc(*room);
        if (*buffer == NULL)
            err(111, "malloc");
    }
    read_all(fd, *buffer + HEAD_MAX, size, name);
    close(fd);
    head_length = (size_t)snprintf(head, sizeof head, "%zu:\n", size + 1);
    memcpy(*buffer + HEAD_MAX - head_length, head, head_length);
    memcpy(*buffer + HEAD_MAX + size, envelope, sizeof envelope - 1);
    send_all(to, *buffer + HEAD_MAX - head_length, head_length + size + sizeof envelope - 1);
}

int main(int argc, char **argv)
{
    char *buffer = NULL, ignored[65536];
    size_t room = 0;
    struct dirent *entry;
    DIR *listing;
    int maildir, new, to;

    if (argc != 3)
        errx(100, "usage: reference MAILDIR PORT");
    maildir = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (maildir < 0)
        err(111, "open %s", argv[1]);
    new = openat(maildir, "new", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (new < 0 || (listing = fdopendir(new)) == NULL)
        err(111, "open %s/new", argv[1]);
    to = connect_to(argv[2]);
    while ((entry = readdir(listing)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        send_file(to, new, entry->d_name, &buffer, &room);
        if (unlinkat(new, entry->d_name, 0) < 0)
            err(111, "unlink %s", entry->d_name);
    }
    shutdown(to, SHUT_WR);
    while (read(to, ignored, sizeof ignored) > 0)
        ;
    return 0;
}
