// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 over connections that last, as plain as it gets: what is measured is what lies between.
//
//   web server PORT                        answers every request with 200 and 64 bytes, until killed
//   web client ADDRESS PORT PATH CONNECTIONS REQUESTS
//                                          one request at a time on each connection, REQUESTS in all for each byte on its
//                                          standard input; prints seconds, then p50 and p99 of the latency in microseconds
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 1024
#define BODY "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const char answer[] = "HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\n" BODY;
static char buffers[MOST][8192];
static int filled[MOST];
static double begun_us[MOST];

static void fail(const char *what)
{
	fprintf(stderr, "web: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void set(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)))
		fail("setsockopt");
}

static void watch(int poll, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (fd >= MOST)
		fail("too many connections");
	if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
		fail("epoll_ctl");
	filled[fd] = 0;
}

// Reads what there is; how many requests (or answers 200 with `size` bytes after their head) are whole. -1: it has ended.
static int whole(int fd, int size)
{
	int count = 0, used = 0;
	ssize_t got = read(fd, buffers[fd] + filled[fd], sizeof(buffers[fd]) - filled[fd] - 1);

	if (got <= 0)
		return -1;
	filled[fd] += got;
	buffers[fd][filled[fd]] = 0;
	for (;;) {
		char *end = strstr(buffers[fd] + used, "\r\n\r\n");
		int next = end ? end + 4 - buffers[fd] + size : 0;

		if (!end || next > filled[fd])
			break;
		if (size && strncmp(buffers[fd] + used, "HTTP/1.1 200", 12)) {
			errno = EPROTO;
			fail("an answer that is not 200");
		}
		used = next;
		count++;
	}
	memmove(buffers[fd], buffers[fd] + used, filled[fd] - used);
	filled[fd] -= used;
	return count;
}

static void serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any };
	int fd = socket(AF_INET6, SOCK_STREAM, 0), poll = epoll_create1(0);

	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 512))
		fail("listen");
	watch(poll, fd);
	puts("listening");
	fflush(stdout);
	for (;;) {
		struct epoll_event events[64];
		int ready = epoll_wait(poll, events, 64, -1);

		for (int i = 0; i < ready; i++) {
			int peer = events[i].data.fd, count;

			if (peer == fd) {
				peer = accept(fd, NULL, NULL);
				if (peer >= 0) {
					set(peer, IPPROTO_TCP, TCP_NODELAY, 1);
					watch(poll, peer);
				}
				continue;
			}
			for (count = whole(peer, 0); count > 0; count--)
				if (write(peer, answer, sizeof(answer) - 1) < 0)
					break;
			if (count < 0)
				close(peer);
		}
	}
}

static int dial(const char *address, int port)
{
	struct sockaddr_in6 to6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr_in to4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	int six = strchr(address, ':') != NULL, fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);

	inet_pton(six ? AF_INET6 : AF_INET, address, six ? (void *)&to6.sin6_addr : (void *)&to4.sin_addr);
	if (connect(fd, six ? (void *)&to6 : (void *)&to4, six ? sizeof(to6) : sizeof(to4)))
		fail("connect");
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	return fd;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void ask(int fd, const char *request)
{
	begun_us[fd] = now_us();
	if (write(fd, request, strlen(request)) < 0)
		fail("write");
}

static void turn(int poll, const int *fds, int connections, int requests, const char *request)
{
	double *took = calloc(requests, sizeof(*took)), started = now_us();
	int asked = 0, done = 0;

	for (int i = 0; i < connections && asked < requests; i++, asked++)
		ask(fds[i], request);
	while (done < requests) {
		struct epoll_event events[64];
		int ready = epoll_wait(poll, events, 64, 10000);

		if (ready <= 0)
			fail("no answer");
		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd, count = whole(fd, 64);

			if (count < 0)
				fail("closed");
			for (; count; count--) {
				took[done++] = now_us() - begun_us[fd];
				if (asked < requests) {
					asked++;
					ask(fd, request);
				}
			}
		}
	}
	double seconds = (now_us() - started) / 1e6;

	qsort(took, requests, sizeof(*took), by_size);
	printf("%f %f %f\n", seconds, took[requests / 2], took[requests - 1 - requests / 100]);
	fflush(stdout);
	free(took);
}

int main(int argc, char **argv)
{
	char request[1024], byte;
	int fds[MOST], poll, connections;

	if (argc == 3 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]));
	if (argc != 7 || strcmp(argv[1], "client") || (connections = atoi(argv[5])) > MOST / 2) {
		fprintf(stderr, "web: see web.c\n");
		return 2;
	}
	snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nhost: bench\r\n\r\n", argv[4]);
	poll = epoll_create1(0);
	for (int i = 0; i < connections; i++) {
		fds[i] = dial(argv[2], atoi(argv[3]));
		watch(poll, fds[i]);
	}
	while (read(0, &byte, 1) == 1)
		turn(poll, fds, connections, atoi(argv[6]), request);
	return 0;
}
