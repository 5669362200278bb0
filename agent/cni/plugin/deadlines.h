// SPDX-License-Identifier: Apache-2.0
/* Reading and writing that ends by a deadline (CLOCK_MONOTONIC, milliseconds), whoever is at the other end. */
#ifndef GATEHOUSE_DEADLINES_H
#define GATEHOUSE_DEADLINES_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Until `fd` is ready for `events`; false with ETIMEDOUT once `deadline` has passed. */
static bool await(int fd, short events, int64_t deadline)
{
	struct pollfd one = {.fd = fd, .events = events};

	for (;;) {
		int64_t left = deadline - now_ms();
		int ready = poll(&one, 1, left > 0 ? (int)left : 0);

		if (ready > 0)
			return true;
		if (ready == 0) {
			errno = ETIMEDOUT;
			return false;
		}
		if (errno != EINTR)
			return false;
	}
}

static bool write_all(int fd, const void *data, size_t length, int64_t deadline)
{
	const char *at = data;

	while (length) {
		if (!await(fd, POLLOUT, deadline))
			return false;
		ssize_t count = write(fd, at, length);
		if (count < 0 && errno != EINTR && errno != EAGAIN)
			return false;
		if (count > 0) {
			at += count;
			length -= (size_t)count;
		}
	}
	return true;
}

/* Up to `room` bytes, until the end of what comes; the number of them, or -1. */
static ssize_t read_up_to(int fd, void *data, size_t room, int64_t deadline)
{
	size_t length = 0;

	while (length < room) {
		if (!await(fd, POLLIN, deadline))
			return -1;
		ssize_t count = read(fd, (char *)data + length, room - length);
		if (count == 0)
			break;
		if (count < 0 && errno != EINTR && errno != EAGAIN)
			return -1;
		if (count > 0)
			length += (size_t)count;
	}
	return (ssize_t)length;
}

#endif
