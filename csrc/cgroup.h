/* Memory cgroups: who pays for which frames. Source: Linux mm/memcontrol.c, mm/page_counter.c.
 *
 * A frame is charged, when it is handed out, to the group of the space on whose behalf that is (frames.payer): the first toucher,
 * the copier, page tables included. It stays charged to that group until it is free, whoever uses it. Usage is hierarchical, what
 * it consists of is counted where it was charged. A slot of the swap device is charged to the group of the frame that it is for,
 * until the slot is free. Group 0, the root, neither pays nor limits anything.
 *
 * Invariants: usage is the sum of the kinds here and in the groups below; check.c recounts it.
 * Callers: frame, check, api.
 */
#ifndef VMEMU_CGROUP_H
#define VMEMU_CGROUP_H

#include "base.h"

#define CGROUPS_MAX 65535u

struct cgroup {
	uint64_t max; /* frames; UINT64_MAX: no limit */
	uint64_t high;
	uint64_t usage; /* here and below */
	uint64_t peak;
	uint64_t kinds[VMEMU_NCHARGES]; /* charged here */
	uint64_t highs;			/* charges beyond `high`, here and below */
	uint64_t highs_local;
	uint64_t again;	   /* usage from which on it is worth trying to get it below `high` */
	uint64_t swap_max; /* slots of the swap device; UINT64_MAX: no limit */
	uint64_t swap;	   /* here and below */
	uint64_t swap_peak;
	uint64_t swap_refused[2]; /* pages here and below that stayed: [0] for a limit, [1] for that or a full device */
	uint64_t cached;	  /* frames in the swap cache that are charged here */
	uint32_t refused_run;	  /* last run of reclaim that counted a refusal */
	uint16_t parent;	  /* 0: the root */
	uint16_t used;
};

struct cgroups {
	struct cgroup *of; /* by id; NULL until there is one besides the root */
	uint32_t n;
	uint32_t over; /* group that was charged beyond its `high` and is to be brought back; 0: none */
	struct host *host;
};

/* Charges n frames to a group and those above it; 0, or the id of the group whose limit it would exceed, and then nothing is
 * charged, nor a peak moved. */
uint32_t cgroup_charge(struct cgroups *c, uint32_t id, uint64_t n, enum vmemu_charge kind);
void cgroup_uncharge(struct cgroups *c, uint32_t id, uint64_t n, enum vmemu_charge kind);
/* Frames until it, or one above it, is beyond its `high`; UINT64_MAX: none has one. */
uint64_t cgroup_high_room(const struct cgroups *c, uint32_t id);

/* Slots of the swap device that it may have still; UINT64_MAX: as many as there are. */
uint64_t cgroup_swap_room(const struct cgroups *c, uint32_t id);
/* A slot more, for which there is room; one less. The root pays nothing. */
void cgroup_charge_swap(struct cgroups *c, uint32_t id);
void cgroup_uncharge_swap(struct cgroups *c, uint32_t id);
/* A page stays for want of a slot: MEMCG_SWAP_FAIL, and for a limit MEMCG_SWAP_MAX. Counted once in a run of reclaim; not where
 * there may be no slot at all, for Linux does not try then. */
void cgroup_refuse_swap(struct cgroups *c, uint32_t id, uint32_t run);

/* -EEXIST, -ENOENT: the parent; -ENOMEM. */
int cgroup_new(struct cgroups *c, uint32_t id, uint32_t parent);
/* What is charged to it is its parent's from now on; the frames' records are the caller's to change. */
void cgroup_free(struct cgroups *c, uint32_t id);
void cgroups_destroy(struct cgroups *c);

static inline struct cgroup *cgroup_get(const struct cgroups *c, uint32_t id)
{
	return id && id < c->n && c->of[id].used ? &c->of[id] : NULL;
}

#endif
