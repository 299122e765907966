/* Ground: integers, page sizes, our own assertion, and the host's memory with a switch to make it fail.
 *
 * Included by every file; includes none of the core. CPython builds with NDEBUG, which compiles assert() out, so broken
 * invariants are caught by VM_ASSERT. It is for bugs only: a user's mistake is an errno.
 */
#ifndef VMEMU_BASE_H
#define VMEMU_BASE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmemu_cdef.h"

#define PAGE_SHIFT 12
#define PAGE_BYTES (UINT64_C(1) << PAGE_SHIFT)
#define PAGE_MASK (PAGE_BYTES - 1)
#define BLOCK_FRAMES 512u /* frames in an aligned 2 MiB block */
#define TABLE_BLOCKS 512u /* blocks in 1 GiB */
/* Pages of 4 KiB in a huge page of a pool. */
#define HUGE_PAGES(giant) ((giant) ? BLOCK_FRAMES * TABLE_BLOCKS : BLOCK_FRAMES)

/* End of the user half; the last page below 2^47 cannot be mapped (TASK_SIZE_MAX). */
#define TASK_SIZE UINT64_C(0x7ffffffff000)
/* Pages kept free below a stack (stack_guard_gap). */
#define STACK_GUARD (UINT64_C(256) << PAGE_SHIFT)

typedef uint32_t pfn_t;
#define NO_PFN UINT32_MAX

#define VM_ASSERT(cond)                                                                                                \
	do {                                                                                                           \
		if (__builtin_expect(!(cond), 0)) {                                                                    \
			fprintf(stderr, "vmemu: %s:%d: broken invariant: %s\n", __FILE__, __LINE__, #cond);            \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* The host's memory as one machine sees it. `fail` counts allocations down, frames included; the one that reaches 0 fails. */
struct host {
	uint64_t fail;
	uint64_t bytes;
};

static inline int host_fails(struct host *h)
{
	return h->fail && --h->fail == 0;
}

static inline void *host_alloc(struct host *h, size_t size)
{
	void *p = host_fails(h) ? NULL : malloc(size);

	if (p)
		h->bytes += size;
	return p;
}

static inline void *host_zalloc(struct host *h, size_t size)
{
	void *p = host_fails(h) ? NULL : calloc(1, size); /* calloc: large tables stay untouched until used */

	if (p)
		h->bytes += size;
	return p;
}

static inline void host_free(struct host *h, void *p, size_t size)
{
	if (p)
		h->bytes -= size;
	free(p);
}

#endif
