/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bcc's helpers use ilog2. The result for 0 is undefined, as in the kernel. */
#ifndef GATEHOUSE_LOG2_H
#define GATEHOUSE_LOG2_H

static inline int ilog2(unsigned long value)
{
	return 63 - __builtin_clzl(value);
}

#endif
