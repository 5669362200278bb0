/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bcc's headers name PAGE_SIZE only in perf buffers, which Gatehouse does not use. */
#ifndef GATEHOUSE_PAGE_H
#define GATEHOUSE_PAGE_H

#define PAGE_SIZE 4096

#endif
