/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * bcc compiles against a kernel source tree and includes this file before all others. Gatehouse has no kernel
 * headers: this folder, next to the installed user-space headers, is the tree (agent/datapath/compile.py assembles it).
 * Declared here is what bcc's own headers expect and the user-space ones do not declare.
 */
#ifndef GATEHOUSE_KCONFIG_H
#define GATEHOUSE_KCONFIG_H

#define CONFIG_64BIT 1
#define CONFIG_BPF_SYSCALL 1

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;

typedef _Bool bool;
#define true 1
#define false 0

typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#define NULL ((void *)0)

#endif
