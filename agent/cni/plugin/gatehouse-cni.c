// SPDX-License-Identifier: Apache-2.0
/*
 * The CNI plugin: hands what a container runtime asks (CNI spec 1.1, section 2) to the agent's socket and prints what
 * it is answered.
 *
 * It decides nothing. VERSION it answers itself; where the agent does not answer, ADD, CHECK, GC and STATUS fail with
 * an error that says so, and DEL is left as a file in cni-queue beside the socket, for the agent to take up.
 * A static program: the host needs no runtime, shell or library. Everything is bounded in size and time.
 *
 * What goes to the socket, and into the file: "GHC1", length of the environment, length of the configuration (32 bits,
 * big endian), NAME=VALUE strings each ended by NUL, the configuration as it came. What comes back: "GHA1", exit
 * status, length (32 bits, big endian), what to print. See agent/cni/protocol.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "deadlines.h"
#include "members.h"

#define DEFAULT_SOCKET "/var/lib/gatehouse/cni.sock"
#define VERSIONS "\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\""
#define QUEUE "cni-queue"

enum {
	CONFIG_BYTES = 1 << 20,
	ENVIRONMENT_BYTES = 64 << 10,
	ANSWER_BYTES = 1 << 20,
	HEADER_BYTES = 12,
	CONTAINER_ID_BYTES = 200, /* with an interface's name it is the name of a file */
	STDOUT_MS = 10000,
};

/* Shorter ones are for tests. */
#ifndef STDIN_LIMIT_MS
#define STDIN_LIMIT_MS 10000
#endif
#ifndef CONNECT_LIMIT_MS
#define CONNECT_LIMIT_MS 5000
#endif
#ifndef AGENT_LIMIT_MS
#define AGENT_LIMIT_MS 90000
#endif

/* Error codes of the CNI spec, section 5. */
enum {
	INVALID_ENVIRONMENT = 4,
	IO_FAILURE = 5,
	NOT_DECODED = 6,
	INVALID_CONFIG = 7,
	TRY_AGAIN_LATER = 11,
	NOT_AVAILABLE = 50,
};

/* How long the agent is waited for, all in all: below the two minutes after which the kubelet gives up on a sandbox. */
static const struct command {
	const char *name;
	int timeout_ms;
} commands[] = {
	{"ADD", AGENT_LIMIT_MS},   {"GC", AGENT_LIMIT_MS},	{"DEL", AGENT_LIMIT_MS / 3},
	{"CHECK", AGENT_LIMIT_MS / 3}, {"STATUS", AGENT_LIMIT_MS / 9}, {"VERSION", 0},
};

static const char *const variables[] = {"CNI_COMMAND", "CNI_CONTAINERID",	  "CNI_NETNS", "CNI_IFNAME",
					"CNI_ARGS",    "CNI_NETNS_OVERRIDE"};

static char config[CONFIG_BYTES + 1];
static char environment[ENVIRONMENT_BYTES];
static unsigned char answer[ANSWER_BYTES];
static size_t config_length, environment_length, answer_length;
static uint32_t answer_status; /* 0 or 1 */
static const char *version = "1.0.0"; /* until the configuration says which */
static char given_version[32];
static char socket_path[PATH_MAX] = DEFAULT_SOCKET;
static const struct member members[] = {
	{"cniVersion", given_version, sizeof(given_version)},
	{"socket", socket_path, sizeof(socket_path)},
};

/* ---- what is printed */

static void append_escaped(char *text, size_t size, const char *part)
{
	size_t length = strlen(text);

	for (; *part && length + 7 < size; part++) {
		unsigned char c = (unsigned char)*part;

		if (c == '"' || c == '\\') {
			text[length++] = '\\';
			text[length++] = (char)c;
		} else if (c < 0x20 || c >= 0x7f) {
			length += (size_t)snprintf(text + length, 7, "\\u%04x", c);
		} else {
			text[length++] = (char)c;
		}
	}
	text[length] = 0;
}

/* An error of the CNI spec on stdout. Returns the exit status. */
static int fail(int code, const char *message, const char *details)
{
	static char text[8192];
	char escaped[4096] = "";

	append_escaped(escaped, sizeof(escaped), details);
	int length = snprintf(text, sizeof(text), "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\",\"details\":\"%s\"}\n",
			      version, code, message, escaped);
	write_all(STDOUT_FILENO, text, (size_t)length, now_ms() + STDOUT_MS);
	return 1;
}

static int fail_because(int code, const char *message, const char *what, const char *advice)
{
	char details[PATH_MAX + 512];
	int number = errno;

	snprintf(details, sizeof(details), "%s: %s; %s", what, strerror(number), advice);
	return fail(code, message, details);
}

/* ---- the agent */

static bool add_variable(const char *name)
{
	const char *value = getenv(name);
	size_t room = sizeof(environment) - environment_length;

	if (!value)
		return true;
	if (strlen(name) + strlen(value) + 2 > room)
		return false;
	environment_length += (size_t)snprintf(environment + environment_length, room, "%s=%s", name, value) + 1;
	return true;
}

static void write_header(unsigned char *header)
{
	uint32_t lengths[2] = {htonl((uint32_t)environment_length), htonl((uint32_t)config_length)};

	memcpy(header, "GHC1", 4);
	memcpy(header + 4, lengths, sizeof(lengths));
}

/* The folder of `path`, open, or -1, and its name within: sun_path is short, and the queue is in the folder, too. */
static int open_folder(const char *path, const char **name)
{
	char folder[PATH_MAX];
	const char *slash = strrchr(path, '/');

	snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
	*name = slash + 1;
	return open(*folder ? folder : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static int connect_agent(int folder, const char *name, int64_t deadline)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int length = snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", folder, name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (length >= (int)sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	while (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		const struct timespec pause = {.tv_nsec = 20000000};

		if (errno != EAGAIN && errno != EINTR) /* EAGAIN: its backlog is full */
			return -1;
		if (now_ms() > deadline) {
			errno = ETIMEDOUT;
			return -1;
		}
		nanosleep(&pause, NULL);
	}
	return fd;
}

/* Ask the agent; what it answers is in `answer`. False, with errno, where it does not, or not in our words. */
static bool ask(int folder, const char *name, int timeout_ms)
{
	int64_t deadline = now_ms() + timeout_ms;
	unsigned char header[HEADER_BYTES];
	uint32_t numbers[2];
	int fd = connect_agent(folder, name, now_ms() + (timeout_ms < CONNECT_LIMIT_MS ? timeout_ms : CONNECT_LIMIT_MS));

	if (fd < 0)
		return false;
	write_header(header);
	bool sent = write_all(fd, header, sizeof(header), deadline) &&
		    write_all(fd, environment, environment_length, deadline) &&
		    write_all(fd, config, config_length, deadline);
	if (!sent && errno == ETIMEDOUT) /* whoever refuses a request may say why before it has all of it */
		return false;
	ssize_t count = read_up_to(fd, header, sizeof(header), deadline);
	if (count < 0)
		return false;
	if (count == 0) {
		errno = ECONNRESET;
		return false;
	}
	memcpy(numbers, header + 4, sizeof(numbers));
	answer_status = ntohl(numbers[0]);
	answer_length = ntohl(numbers[1]);
	if (count < HEADER_BYTES || memcmp(header, "GHA1", 4) || answer_status > 1 || answer_length > sizeof(answer)) {
		errno = EPROTO;
		return false;
	}
	count = read_up_to(fd, answer, answer_length, deadline);
	if (count >= 0 && (size_t)count < answer_length)
		errno = ECONNRESET;
	close(fd);
	return count == (ssize_t)answer_length;
}

static int print_answer(void)
{
	bool printed = write_all(STDOUT_FILENO, answer, answer_length, now_ms() + STDOUT_MS);

	return printed ? (int)answer_status : 1;
}

/* ---- a DEL that waits for the agent */

/* A file's name, ID@IFNAME, so that repeats take one file. False where the environment does not give one. */
static bool name_queued(char *name, size_t size)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
	const char *id = getenv("CNI_CONTAINERID"), *interface = getenv("CNI_IFNAME");

	if (!id || !interface || strspn(id, plain) != strlen(id) || !*id || strchr("_.-", *id) ||
	    strlen(id) > CONTAINER_ID_BYTES || !*interface || strlen(interface) > 15 || strpbrk(interface, "/: \t\n\v\f\r"))
		return false;
	snprintf(name, size, "%s@%s", id, interface);
	return true;
}

static bool write_queued(int queue, const char *name)
{
	char fresh[NAME_MAX + 32];
	unsigned char header[HEADER_BYTES];

	snprintf(fresh, sizeof(fresh), ".%s.%d", name, (int)getpid());
	int fd = openat(queue, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	write_header(header);
	int64_t deadline = now_ms() + CONNECT_LIMIT_MS;
	bool written = write_all(fd, header, sizeof(header), deadline) &&
		       write_all(fd, environment, environment_length, deadline) &&
		       write_all(fd, config, config_length, deadline);
	written = !close(fd) && written && !renameat(queue, fresh, queue, name);
	if (!written)
		unlinkat(queue, fresh, 0);
	return written;
}

/* Leave the DEL for the agent, which listens first and looks into the queue then. One that began to listen before the
 * file was there may have looked already: so whoever finds nobody listening tries once more after writing. */
static int queue_deletion(int folder, const char *socket_name, int timeout_ms, bool was_connected)
{
	static const char what[] = "the agent does not answer, and this deletion could not be left for it";
	char name[NAME_MAX + 1];

	if (!name_queued(name, sizeof(name)))
		return fail(INVALID_ENVIRONMENT, "CNI_CONTAINERID or CNI_IFNAME is not valid",
			    "the container's id or the interface's name is missing, too long or of other characters");
	if (mkdirat(folder, QUEUE, 0700) && errno != EEXIST)
		return fail_because(IO_FAILURE, what, QUEUE, "check the agent's state directory");
	int queue = openat(folder, QUEUE, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (queue < 0 || !write_queued(queue, name))
		return fail_because(IO_FAILURE, what, QUEUE, "check the agent's state directory");
	if (was_connected || !ask(folder, socket_name, timeout_ms))
		return 0;
	if (!answer_status)
		unlinkat(queue, name, 0);
	return print_answer();
}

/* ---- one run */

static int without_agent(const struct command *command)
{
	static const char advice[] = "see to it that the gatehouse agent runs on this node (its pod, its log)";

	if (errno == EPROTO)
		return fail_because(IO_FAILURE, "the agent's answer is not understood", socket_path,
				    "plugin and agent differ in version: let the agent install its plugin anew");
	if (!strcmp(command->name, "STATUS"))
		return fail_because(NOT_AVAILABLE, "the gatehouse agent does not answer", socket_path, advice);
	return fail_because(TRY_AGAIN_LATER, "the gatehouse agent does not answer", socket_path, advice);
}

static int run(const struct command *command)
{
	const char *name;
	int folder = open_folder(socket_path, &name);
	bool deletes = !strcmp(command->name, "DEL");

	if (folder < 0 && errno == ENOENT && deletes)
		return 0; /* what the agent knew of is gone with its state directory: `gatehouse cleanup` was run */
	if (folder < 0)
		return without_agent(command);
	if (ask(folder, name, command->timeout_ms))
		return print_answer();
	if (deletes)
		return queue_deletion(folder, name, command->timeout_ms, errno != ENOENT && errno != ECONNREFUSED);
	return without_agent(command);
}

static int print_version(void)
{
	char text[256];
	int length = snprintf(text, sizeof(text), "{\"cniVersion\":\"%s\",\"supportedVersions\":[" VERSIONS "]}\n", version);

	return !write_all(STDOUT_FILENO, text, (size_t)length, now_ms() + STDOUT_MS);
}

int main(void)
{
	const struct command *command = NULL;
	const char *wanted = getenv("CNI_COMMAND");

	signal(SIGPIPE, SIG_IGN);
	umask(077);
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (wanted && !strcmp(wanted, commands[i].name))
			command = &commands[i];
	if (!command)
		return fail(INVALID_ENVIRONMENT, "CNI_COMMAND is not valid",
			    "it must be ADD, DEL, CHECK, GC, STATUS or VERSION: a container runtime runs this program");
	alarm((unsigned int)command->timeout_ms / 1000 + 45); /* whatever else may hang, such as a disk */
	ssize_t length = read_up_to(STDIN_FILENO, config, sizeof(config), now_ms() + STDIN_LIMIT_MS);
	if (length < 0)
		return fail_because(IO_FAILURE, "the configuration was not read", "stdin", "the runtime is to close it");
	if (length == sizeof(config))
		return fail(NOT_DECODED, "the configuration is not valid", "it is longer than 1 MiB");
	config_length = (size_t)length;
	config[config_length] = 0;
	if (!command->timeout_ms && !config_length)
		return print_version();
	if (!read_members(config, config_length, members, sizeof(members) / sizeof(*members)))
		return fail(NOT_DECODED, "the configuration is not valid", "what came on stdin is not an object of JSON");
	if (*given_version && strspn(given_version, "0123456789.") == strlen(given_version))
		version = given_version; /* it is printed */
	if (!command->timeout_ms)
		return print_version();
	if (*socket_path != '/')
		return fail(INVALID_CONFIG, "the configuration is not valid", "`socket` is not an absolute path");
	for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++)
		if (!add_variable(variables[i]))
			return fail(INVALID_ENVIRONMENT, "the environment is too long", variables[i]);
	return run(command);
}
