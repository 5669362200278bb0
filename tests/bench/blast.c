// SPDX-License-Identifier: Apache-2.0
// Small UDP packets as fast as one core sends them, over a number of flows.
//
//   blast ADDRESS PORT FLOWS COUNT
//
// Prints the nanoseconds each packet took: of the whole path, where all of it runs on the sender's core.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 32
#define BYTES 18 // with its headers the smallest Ethernet frame

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	char bytes[BYTES] = { 0 };
	struct iovec part = { bytes, sizeof(bytes) };
	struct mmsghdr messages[BATCH] = { 0 };
	int flows, *sockets;
	long long count, start;

	if (argc != 5 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return fprintf(stderr, "usage: blast ADDRESS PORT FLOWS COUNT\n"), 2;
	to.sin_port = htons(atoi(argv[2]));
	flows = atoi(argv[3]);
	count = atoll(argv[4]);
	sockets = calloc(flows, sizeof(*sockets));
	for (int i = 0; i < BATCH; i++) {
		messages[i].msg_hdr.msg_iov = &part;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	for (int i = 0; i < flows; i++) {
		sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
		if (sockets[i] < 0 || connect(sockets[i], (struct sockaddr *)&to, sizeof(to)))
			fail("connect");
	}
	start = now_ns();
	for (long long sent = 0; sent < count; sent += BATCH)
		if (sendmmsg(sockets[sent / BATCH % flows], messages, BATCH, 0) != BATCH)
			fail("sendmmsg");
	printf("%lld\n", (now_ns() - start) / count);
	return 0;
}
