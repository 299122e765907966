/* Accesses: bytes in and out, and batches of touches, each through the tables and, where they do not allow it, the faults.
 *
 * One way for all: find the entry; if it does not allow the access resolve the fault and look again; then set A (and D) and
 * move the bytes. There is no second path that writes.
 * Callers: api, trace.
 */
#ifndef VMEMU_ACCESS_H
#define VMEMU_ACCESS_H

#include "mm.h"

/* The entry allows the access; `writable`: so do the tables that lead to it. */
static inline int access_allowed(pte_t e, int writable, int access)
{
	return e & PTE_P && (!(access & VMEMU_WRITE) || (writable && e & PTE_W)) &&
	       (access != VMEMU_FETCH || !(e & PTE_NX));
}

/* What an access that is allowed leaves behind: A and D (and frame_stamp). */
static inline void access_mark(const struct vm *vm, pte_t *e, int access)
{
	pte_t bits = access & VMEMU_WRITE ? PTE_A | PTE_D : PTE_A;

	if (access != VMEMU_GUP_WRITE) {
		if ((*e & bits) != bits) /* most often they are set, and nothing need be written */
			*e |= bits;
	} else if (!(*e & PTE_D)) { /* follow_page_pte() with FOLL_TOUCH */
		frame_of(&vm->frames, pte_pfn(*e))->flags |= FRAME_DIRTY;
	}
}

/* The entry for va, A and D set, if the tables allow the access as they are; NULL: they do not, a fault. */
static inline pte_t *access_hit(const struct vm *vm, const struct space *s, uint64_t va, int access)
{
	int writable = 0;
	pte_t *e = va < TASK_SIZE ? table_walk(&vm->tables, s->root, va, &writable) : NULL;

	if (!e || !access_allowed(*e, writable, access))
		return NULL;
	access_mark(vm, e, access);
	frame_stamp(&vm->frames, pte_pfn(*e));
	return e;
}

/* One access at va. Returns the frame's entry in *pte and the kind (>= 0; fatal ones included, then *pte is not set), or,
 * negated, a trap reason. */
int access_one(struct vm *vm, struct space *s, uint64_t va, int access, const pte_t **pte, struct vmemu_trap *trap);

/* Results as in vmemu_cdef.h: 0 or a trap reason with *trap filled in. */
int access_read(struct vm *vm, struct space *s, uint64_t va, void *buffer, uint64_t length, int access,
		struct vmemu_trap *trap);
int access_write(struct vm *vm, struct space *s, uint64_t va, const void *buffer, uint64_t length,
		 struct vmemu_trap *trap);
int access_touch(struct vm *vm, struct space *s, uint64_t va, uint64_t length, int access, uint64_t *counts,
		 struct vmemu_trap *trap);
int access_batch(struct vm *vm, struct space *s, const uint64_t *addresses, const uint8_t *writes, int access,
		 uint64_t n, uint8_t *kinds, struct vmemu_trap *trap);

#endif
