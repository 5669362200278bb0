// SPDX-License-Identifier: Apache-2.0
/* The few strings of the configuration that matter to the plugin. The agent reads the rest, and strictly. */
#ifndef GATEHOUSE_MEMBERS_H
#define GATEHOUSE_MEMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct member {
	const char *key;
	char *value;
	size_t size;
};

static void skip_space(const char **at)
{
	while (**at == ' ' || **at == '\t' || **at == '\n' || **at == '\r')
		(*at)++;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The string at `*at` without its quotes and escapes. What does not fit, and any escape but of ASCII, makes it empty:
 * no value that is asked for has such. False where it is no string. */
static bool read_string(const char **at, char *text, size_t size)
{
	static const char plain[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
	size_t length = 0;
	bool fits = true;

	if (*(*at)++ != '"')
		return false;
	for (;;) {
		unsigned int c = (unsigned char)*(*at)++;

		if (c == '"')
			break;
		if (c < 0x20)
			return false;
		if (c == '\\') {
			const char *found = **at ? strchr(plain, **at) : NULL;

			if (found) {
				c = (unsigned char)meant[found - plain];
			} else if (**at == 'u') {
				c = 0;
				for (int i = 1; i <= 4; i++) {
					int digit = hex_digit((*at)[i]);
					if (digit < 0)
						return false;
					c = c << 4 | (unsigned int)digit;
				}
				*at += 4;
				fits = fits && c && c < 0x80;
			} else {
				return false;
			}
			(*at)++;
		}
		if (length + 1 < size)
			text[length++] = (char)c;
		else
			fits = false;
	}
	text[fits ? length : 0] = 0;
	return true;
}

static bool skip_value(const char **at)
{
	char ignored[1];
	size_t depth = 0;

	do {
		skip_space(at);
		if (**at == '"') {
			if (!read_string(at, ignored, sizeof(ignored)))
				return false;
		} else if (**at == '{' || **at == '[') {
			depth++;
			(*at)++;
		} else if (**at == '}' || **at == ']') {
			if (!depth--)
				return false;
			(*at)++;
		} else if (depth && (**at == ',' || **at == ':')) {
			(*at)++;
		} else {
			size_t length = strcspn(*at, " \t\n\r,:\"{}[]");
			if (!length)
				return false;
			*at += length;
		}
		skip_space(at);
	} while (depth);
	return true;
}

/* The strings that the object in `text` has under these keys; a key it does not have leaves its value as it was.
 * False where the text, of this length and then NUL, is not an object of JSON. */
static bool read_members(const char *text, size_t length, const struct member *members, size_t count)
{
	const char *at = text;
	char key[32];

	skip_space(&at);
	if (*at++ != '{')
		return false;
	skip_space(&at);
	while (*at != '}') {
		if (!read_string(&at, key, sizeof(key)))
			return false;
		skip_space(&at);
		if (*at++ != ':')
			return false;
		skip_space(&at);
		const struct member *member = NULL;
		for (size_t i = 0; i < count; i++)
			if (!strcmp(key, members[i].key))
				member = &members[i];
		if (*at == '"' && member ? !read_string(&at, member->value, member->size) : !skip_value(&at))
			return false;
		skip_space(&at);
		if (*at == ',') {
			at++;
			skip_space(&at);
		} else if (*at != '}') {
			return false;
		}
	}
	at++;
	skip_space(&at);
	return at == text + length;
}

#endif
