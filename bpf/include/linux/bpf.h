/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Empty: bcc brings the bpf.h it was built with, and a second one would clash with it. */
