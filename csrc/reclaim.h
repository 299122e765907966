/* Reclaim: which frames go when memory is short, and their way out.
 *
 *      look at A and D ──► pick by policy ──► replace entries ──► clean: freed      dirty: the caller writes it, then it is freed
 *      one pass over the       frames           one pass          at once
 *      leaf tables                              (all mappers)
 *
 * A leaf table that several spaces share is visited once in a pass. Anonymous memory and shared memory get a slot of the swap device
 * and wait in the swap cache until it is written; pages of files leave their object, those written to after the caller has taken the
 * bytes. Huge pages of a pool, page tables, zero pages, merged pages and what is locked stay; a transparent huge page is cut first.
 * Linux: mm/vmscan.c, shrink_folio_list(), try_to_unmap_one().
 * Callers: lru, api.
 */
#ifndef VMEMU_RECLAIM_H
#define VMEMU_RECLAIM_H

#include "mm.h"

/* Which policy, and from where random numbers start. Ages begin anew. -EINVAL, -ENOMEM: nothing changed. */
int reclaim_set_policy(struct vm *vm, uint32_t policy, uint64_t seed);
void reclaim_destroy(struct vm *vm);

/* As vmemu_machine_reclaim. */
int reclaim_run(struct vm *vm, const struct vmemu_reclaim *what, struct vmemu_victim *out, uint32_t cap,
		uint32_t *nvictims);
/* The caller is done with victims; those with `written` set may go. Returns how many frames that frees. */
/* Of victims handed out nothing will be heard any more: who had them was interrupted. What they hold may be nowhere else. */
void reclaim_restore(struct vm *vm);
uint32_t reclaim_finish(struct vm *vm, const struct vmemu_victim *victims, uint32_t n);

/* For lru.c: frames that are to go, whoever maps them (MADV_PAGEOUT). begin: cap more may be added; -ENOMEM. */
struct reclaim;
int reclaim_begin(struct vm *vm, uint32_t cap, struct reclaim **out);
void reclaim_add(struct reclaim *r, pfn_t pfn);
/* Out with them; dirty ones into out[cap]. Returns how many. */
uint32_t reclaim_end(struct reclaim *r, struct vmemu_victim *out);

/* Sets FRAME_MLOCKED on all frames that locked mappings hold, or takes it away. */
void reclaim_mark_locked(struct vm *vm, int on);

/* ---- between the files of reclaim ---- */

/* What a run knows of a frame. */
enum reclaim_mark {
	MARK_YOUNG = 1,	 /* an entry has A */
	MARK_DIRTY = 2,	 /* an entry has D */
	MARK_AGED = 4,	 /* its entries lose A */
	MARK_VICTIM = 8, /* it goes */
	MARK_SPLIT = 16, /* its folio is cut */
};

struct reclaim {
	struct vm *vm;
	const struct vmemu_reclaim *what;
	uint64_t used;	 /* frames from this one on were never used */
	uint64_t room;	 /* slots of the swap device that are free */
	uint64_t splits; /* folios that may be cut still */
	uint64_t aged;	 /* frames that have MARK_AGED and stay */
	uint64_t mapped; /* entries of victims that have not been replaced yet */
	uint32_t cap;
	uint32_t nvictims;
	pfn_t victims[];
};

/* Whether some frame might go, as far as frames alone tell. */
int reclaim_possible(struct reclaim *r);
/* Adds up to n victims. */
void reclaim_pick(struct reclaim *r, uint32_t n);
/* Whether there is a slot for a frame, and its cgroup may have one. */
int reclaim_room(struct reclaim *r, const struct frame *fr);
/* Freed lazily and not written since. */
int reclaim_freed_lazily(const struct reclaim *r, pfn_t pfn);

#endif
