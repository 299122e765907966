/* Reclaim: which frames go. See reclaim.h. */
#include "reclaim.h"

#include "swap.h"

enum evictable { EVICT_ANON, EVICT_FILE, EVICT_NOT };

int reclaim_freed_lazily(const struct reclaim *r, pfn_t pfn)
{
	const struct frame *fr = frame_of(&r->vm->frames, pfn);

	return fr->flags & FRAME_LAZYFREE && !(fr->flags & FRAME_DIRTY || r->vm->reclaim.marks[pfn] & MARK_DIRTY);
}

int reclaim_room(struct reclaim *r, const struct frame *fr)
{
	struct cgroups *c = &r->vm->frames.cgroups;
	int limited = fr->cgroup && !cgroup_swap_room(c, fr->cgroup);

	if (r->room && !limited)
		return 1;
	cgroup_refuse_swap(c, fr->cgroup, r->vm->reclaim.runs);
	return 0;
}

/* Charged to a cgroup that is asked for. */
static int wanted(const struct reclaim *r, const struct frame *fr)
{
	const struct vmemu_reclaim *what = r->what;

	return !what->cgroups || (fr->cgroup < what->ncgroups && what->cgroups[fr->cgroup]);
}

/* As what a frame may go, if it may and is not on its way. Anonymous memory needs a slot, or the one it has; what was freed lazily
 * needs none and goes with the files (folio_lru_list()). */
static enum evictable evictable(struct reclaim *r, pfn_t pfn)
{
	const uint32_t stays = FRAME_TABLE | FRAME_ZERO | FRAME_HUGETLB | FRAME_LARGE | FRAME_KSM | FRAME_FREEING |
			       FRAME_MLOCKED | FRAME_MAJOR;
	const struct frame *fr = &r->vm->frames.of[pfn];

	if (!(fr->flags & FRAME_USED) || fr->flags & stays || r->vm->reclaim.marks[pfn] & MARK_VICTIM || !wanted(r, fr))
		return EVICT_NOT;
	if (fr->flags & FRAME_FILE || reclaim_freed_lazily(r, pfn))
		return EVICT_FILE;
	if (frame_swapcached(fr))
		return r->what->sealed && (fr->flags & FRAME_DIRTY || r->vm->reclaim.marks[pfn] & MARK_DIRTY)
			       ? EVICT_NOT
			       : EVICT_ANON;
	return !r->what->sealed && reclaim_room(r, fr) ? EVICT_ANON : EVICT_NOT;
}

int reclaim_possible(struct reclaim *r)
{
	const struct frames *f = &r->vm->frames;

	for (uint64_t pfn = 0; pfn < r->used; pfn++) {
		const struct frame *fr = &f->of[pfn];

		if (fr->flags & FRAME_USED && fr->flags & (FRAME_MAJOR | FRAME_LARGE | FRAME_LAZYFREE) &&
		    !(fr->flags & FRAME_TABLE))
			return 1; /* these have rules of their own */
		if (evictable(r, (pfn_t)pfn) != EVICT_NOT || (frame_swapcached(fr) && wanted(r, fr)))
			return 1;
	}
	return 0;
}

/* Nobody maps it and the device has it. */
static int idle(const struct frame *fr)
{
	return fr->refs == 1 && !(fr->flags & FRAME_DIRTY) && (fr->flags & FRAME_FILE || frame_swapcached(fr));
}

static void scanned(struct reclaim *r, enum evictable kind)
{
	r->vm->reclaim.counts[kind == EVICT_ANON ? VMEMU_RC_SCAN_ANON : VMEMU_RC_SCAN_FILE]++;
}

/* What costs nothing to take. */
static void pick_idle(struct reclaim *r, uint32_t n)
{
	for (uint64_t pfn = 0; pfn < r->used && n; pfn++) {
		enum evictable kind = evictable(r, (pfn_t)pfn);

		if (kind == EVICT_NOT || !idle(&r->vm->frames.of[pfn]))
			continue;
		scanned(r, kind);
		reclaim_add(r, (pfn_t)pfn);
		n--;
	}
}

/* Accessed since the last time; its entries forget that. */
static int second_chance(struct reclaim *r, pfn_t pfn)
{
	uint8_t *mark = &r->vm->reclaim.marks[pfn];

	if (!(*mark & MARK_YOUNG) || *mark & MARK_AGED)
		return 0;
	*mark |= MARK_AGED;
	r->aged++;
	return 1;
}

/* Each picks up to n frames of a kind and returns how many are missing. */

static uint32_t pick_clock(struct reclaim *r, enum evictable kind, uint32_t n)
{
	pfn_t *hand = &r->vm->reclaim.hand[kind];

	for (uint64_t step = 0; step < 2 * r->used && n; step++) {
		pfn_t pfn = *hand < r->used ? *hand : 0;

		*hand = pfn + 1;
		if (evictable(r, pfn) != kind)
			continue;
		scanned(r, kind);
		if (second_chance(r, pfn))
			continue;
		reclaim_add(r, pfn);
		n--;
	}
	return n;
}

static uint64_t next_random(struct vm *vm)
{
	uint64_t x = vm->reclaim.random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return vm->reclaim.random = x;
}

static uint32_t pick_random(struct reclaim *r, enum evictable kind, uint32_t n)
{
	uint64_t misses = 0;

	while (n && misses < 4 * r->used) {
		pfn_t pfn = (pfn_t)(next_random(r->vm) % r->used);

		if (evictable(r, pfn) != kind) {
			misses++;
			continue;
		}
		scanned(r, kind);
		reclaim_add(r, pfn);
		n--;
	}
	for (uint64_t pfn = 0; pfn < r->used && n; pfn++) /* few are left, and hard to meet */
		if (evictable(r, (pfn_t)pfn) == kind) {
			scanned(r, kind);
			reclaim_add(r, (pfn_t)pfn);
			n--;
		}
	return n;
}

/* A frame and its age, in a heap whose first is the youngest. */
struct aged {
	uint64_t stamp;
	pfn_t pfn;
};

static int younger(const struct aged *a, const struct aged *b)
{
	return a->stamp != b->stamp ? a->stamp > b->stamp : a->pfn > b->pfn;
}

static void sift_down(struct aged *h, uint32_t n)
{
	uint32_t i = 0, child;

	while ((child = 2 * i + 1) < n) {
		struct aged one = h[i];

		if (child + 1 < n && younger(&h[child + 1], &h[child]))
			child++;
		if (!younger(&h[child], &one))
			return;
		h[i] = h[child];
		h[child] = one;
		i = child;
	}
}

static void push(struct aged *h, uint32_t n, struct aged one)
{
	uint32_t i = n;

	for (; i && younger(&one, &h[(i - 1) / 2]); i = (i - 1) / 2)
		h[i] = h[(i - 1) / 2];
	h[i] = one;
}

static int by_age(const void *a, const void *b)
{
	return younger(a, b) ? 1 : -1;
}

/* The frames with the lowest stamps below `limit`, in their order; without `young` only those not accessed. */
static uint32_t pick_oldest(struct reclaim *r, enum evictable kind, uint32_t n, uint64_t limit, int young)
{
	struct vm *vm = r->vm;
	const size_t size = n * sizeof(struct aged);
	struct aged *heap = n ? host_alloc(&vm->host, size) : NULL;
	uint32_t found = 0;

	if (!heap)
		return n;
	for (uint64_t pfn = 0; pfn < r->used; pfn++) {
		struct aged one = { vm->frames.stamps[pfn], (pfn_t)pfn };

		if (one.stamp >= limit || (!young && vm->reclaim.marks[pfn] & MARK_YOUNG) ||
		    evictable(r, (pfn_t)pfn) != kind)
			continue;
		scanned(r, kind);
		if (found < n) {
			push(heap, found, one);
			found++;
		} else if (younger(&heap[0], &one)) {
			heap[0] = one;
			sift_down(heap, found);
		}
	}
	qsort(heap, found, sizeof(*heap), by_age);
	for (uint32_t i = 0; i < found; i++)
		if (evictable(r, heap[i].pfn) == kind) { /* the slots may have run out */
			reclaim_add(r, heap[i].pfn);
			n--;
		}
	host_free(&vm->host, heap, size);
	return n;
}

/* Two generations (lru_gen): the stamp is the generation. Accessed frames join the younger one; when the older is empty, the
 * younger becomes the older. */
static uint32_t pick_aging(struct reclaim *r, enum evictable kind, uint32_t n)
{
	struct frames *f = &r->vm->frames;
	uint64_t *youngest = &f->stamps[f->nframes];

	for (uint64_t pfn = 0; pfn < r->used; pfn++)
		if (evictable(r, (pfn_t)pfn) == kind && second_chance(r, (pfn_t)pfn))
			f->stamps[pfn] = *youngest;
	n = pick_oldest(r, kind, n, *youngest, 0);
	if (!n)
		return 0;
	++*youngest;
	n = pick_oldest(r, kind, n, *youngest, 0);
	return pick_oldest(r, kind, n, *youngest, 1);
}

static uint32_t pick(struct reclaim *r, enum evictable kind, uint32_t n)
{
	switch (r->vm->reclaim.policy) {
	case VMEMU_POLICY_RANDOM:
		return pick_random(r, kind, n);
	case VMEMU_POLICY_FIFO:
	case VMEMU_POLICY_LRU:
		return pick_oldest(r, kind, n, UINT64_MAX, 1);
	case VMEMU_POLICY_AGING:
		return pick_aging(r, kind, n);
	default:
		return pick_clock(r, kind, n);
	}
}

/* Slots of frames that are in memory again are given up where others need them (vm_swap_full()); not those of victims, which go
 * there. */
static void free_slots(struct reclaim *r, uint32_t n)
{
	struct frames *f = &r->vm->frames;

	for (uint64_t pfn = 0; pfn < r->used && f->swap.cached && (r->room < n || f->cgroups.n); pfn++) {
		if (!frame_swapcached(&f->of[pfn]) || f->of[pfn].refs == 1 || !swap_can_leave(f, (pfn_t)pfn) ||
		    r->vm->reclaim.marks[pfn] & MARK_VICTIM)
			continue;
		if (r->room >= n && cgroup_swap_room(&f->cgroups, f->swap.payer[f->swap.slot[pfn]]) >= n)
			continue;
		swap_leave(f, (pfn_t)pfn);
		r->room++;
	}
}

/* Just read for faults that have not been finished, and nothing else is there to be had: those that wait will read them again. */
static void give_up_waiting(const struct reclaim *r)
{
	for (uint64_t pfn = 0; pfn < r->used; pfn++)
		r->vm->frames.of[pfn].flags &= (uint16_t)~FRAME_MAJOR;
}

void reclaim_pick(struct reclaim *r, uint32_t n)
{
	uint32_t before = r->nvictims, anon, left;

	free_slots(r, n);
	pick_idle(r, n);
	n -= r->nvictims - before;
	anon = (uint32_t)((uint64_t)n * r->what->swappiness / 200);
	left = pick(r, EVICT_FILE, n - anon);
	left = pick(r, EVICT_ANON, anon + left);
	if (left)
		left = pick(r, EVICT_FILE, left);
	if (left && r->nvictims == before)
		give_up_waiting(r);
}

int reclaim_set_policy(struct vm *vm, uint32_t policy, uint64_t seed)
{
	struct frames *f = &vm->frames;
	int stamps = policy == VMEMU_POLICY_FIFO || policy == VMEMU_POLICY_LRU || policy == VMEMU_POLICY_AGING;

	if (policy >= VMEMU_NPOLICIES)
		return -EINVAL;
	if (stamps && !f->stamps && !(f->stamps = host_zalloc(&vm->host, (f->nframes + 1) * sizeof(*f->stamps))))
		return -ENOMEM;
	if (!stamps && f->stamps) {
		host_free(&vm->host, f->stamps, (f->nframes + 1) * sizeof(*f->stamps));
		f->stamps = NULL;
	}
	f->stamped = (uint32_t)stamps;
	if (stamps)
		memset(f->stamps, 0, (f->nframes + 1) * sizeof(*f->stamps));
	f->recency = policy == VMEMU_POLICY_LRU ? f->stamps : NULL;
	f->step = policy != VMEMU_POLICY_AGING;
	vm->reclaim.policy = policy;
	vm->reclaim.random = seed * 2 + 1; /* not 0 */
	vm->reclaim.hand[0] = vm->reclaim.hand[1] = 0;
	return 0;
}

void reclaim_destroy(struct vm *vm)
{
	host_free(&vm->host, vm->frames.stamps, (vm->frames.nframes + 1) * sizeof(*vm->frames.stamps));
	host_free(&vm->host, vm->reclaim.marks, vm->frames.nframes);
	host_free(&vm->host, vm->reclaim.pending, vm->reclaim.cap * sizeof(*vm->reclaim.pending));
	vm->frames.stamps = vm->frames.recency = NULL;
	vm->frames.stamped = 0;
	vm->reclaim.marks = NULL;
	vm->reclaim.pending = NULL;
	vm->reclaim.npending = vm->reclaim.cap = 0;
}
