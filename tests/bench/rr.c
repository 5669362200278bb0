// SPDX-License-Identifier: Apache-2.0
// Request/response over TCP, one byte each way, as plain as it gets: what is measured is the path, not the program.
//
//   rr server PORT                           serves one connection at a time until killed
//   rr client ADDRESS PORT COUNT rr|crr|connect
//                                            rr: COUNT exchanges on one connection; crr: each on a connection of its own;
//                                            connect: connections without an exchange, connect() alone is timed
//
// The client takes a turn of COUNT for each byte on its standard input, and prints the median in nanoseconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "rr: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void set(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)))
		fail("setsockopt");
}

static long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any };
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 128))
		fail("listen");
	puts("listening");
	fflush(stdout);
	for (;;) {
		int peer = accept(fd, NULL, NULL);
		char byte;

		if (peer < 0)
			continue;
		set(peer, IPPROTO_TCP, TCP_NODELAY, 1);
		while (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) == 1)
			;
		close(peer);
	}
}

static int dial(struct sockaddr_in6 *to)
{
	struct linger abort_at_close = { 1, 0 };
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)to, sizeof(*to)))
		fail("connect");
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	// No TIME_WAIT: a long run must not use up the ports.
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &abort_at_close, sizeof(abort_at_close));
	return fd;
}

static void exchange(int fd)
{
	char byte = 'x';

	if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
		fail("exchange");
}

static int ascending(const void *a, const void *b)
{
	long long x = *(const long long *)a, y = *(const long long *)b;

	return (x > y) - (x < y);
}

struct shape {
	int per_connection; // a connection for each exchange
	int exchanges;
};

static long long once(struct sockaddr_in6 *to, struct shape shape, int *fd)
{
	long long start = now_ns(), took;

	if (shape.per_connection)
		*fd = dial(to);
	if (shape.exchanges)
		exchange(*fd);
	if (shape.per_connection && shape.exchanges)
		close(*fd);
	took = now_ns() - start;
	if (!shape.exchanges)
		close(*fd);
	return took;
}

static void measure(const char *address, int port, int count, struct shape shape)
{
	struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	char mapped[INET6_ADDRSTRLEN + 8], turn;
	long long *took = calloc(count, sizeof(*took));
	int fd = -1;

	snprintf(mapped, sizeof(mapped), strchr(address, ':') ? "%s" : "::ffff:%s", address);
	if (!took || inet_pton(AF_INET6, mapped, &to.sin6_addr) != 1)
		fail("address");
	while (read(STDIN_FILENO, &turn, 1) == 1) {
		if (!shape.per_connection)
			fd = dial(&to);
		for (int i = 0; i < count; i++)
			took[i] = once(&to, shape, &fd);
		if (!shape.per_connection)
			close(fd);
		qsort(took, count, sizeof(*took), ascending);
		printf("%lld\n", took[count / 2]);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]));
	else if (argc == 6 && !strcmp(argv[1], "client"))
		measure(argv[2], atoi(argv[3]), atoi(argv[4]),
			(struct shape){ strcmp(argv[5], "rr") != 0, strcmp(argv[5], "connect") != 0 });
	else
		return fprintf(stderr, "usage: rr server PORT | rr client ADDRESS PORT COUNT rr|crr|connect\n"), 2;
	return 0;
}
