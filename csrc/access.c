/* Accesses through the tables. See access.h. */
#include "access.h"

#include "fault.h"
#include "faultlog.h"

/* What a call may do before it returns to its caller, who may have a signal to look at: well under 50 ms of hits, or of
 * faults, which may each bring fresh memory from the host. */
#define SLICE (UINT32_C(1) << 20)
#define SLICE_FAULT 128u
#define SLICE_PAGES (SLICE / SLICE_FAULT)
/* Accesses of a batch whose entries are looked for at once, so that the host's memory is waited for once. */
#define AHEAD 64u

/* An access outside the user half. */
static int refuse(struct vm *vm, struct space *s, uint64_t va, int access)
{
	fault_count(vm, s, va, access & VMEMU_WRITE ? VMEMU_WRITE : access, VMEMU_SEGV_MAPERR, 0);
	return VMEMU_SEGV_MAPERR;
}

int access_one(struct vm *vm, struct space *s, uint64_t va, int access, const pte_t **pte, struct vmemu_trap *trap)
{
	int kind;

	*pte = access_hit(vm, s, va, access);
	if (*pte)
		return VMEMU_NONE;
	if (va >= TASK_SIZE)
		return refuse(vm, s, va, access);
	kind = fault_resolve(vm, s, va, access == VMEMU_GUP_WRITE ? VMEMU_WRITE : access, trap);
	if (kind < 0 || kind >= VMEMU_SEGV_MAPERR)
		return kind;
	*pte = access_hit(vm, s, va, access);
	VM_ASSERT(*pte); /* one fault makes the access possible */
	return kind;
}

/* Ends a call at `va` with what access_one said. */
static int stop(struct vmemu_trap *trap, uint64_t va, uint64_t done, int result)
{
	trap->address = va;
	trap->done = done;
	if (result < 0)
		return -result;
	trap->kind = (uint32_t)result;
	return VMEMU_TRAP_FAULT;
}

/* Bytes from va to the end of its page, at most `left`. */
static uint64_t chunk(uint64_t va, uint64_t left)
{
	return min_u64(PAGE_BYTES - (va & PAGE_MASK), left);
}

/* Bytes between a buffer and memory, page by page: out of memory into `to`, or, if that is NULL, into memory from `from`. */
static int transfer(struct vm *vm, struct space *s, uint64_t va, uint8_t *to, const uint8_t *from, uint64_t length,
		    int access, struct vmemu_trap *trap)
{
	uint64_t done = 0, n;
	uint32_t pages = 0;
	const pte_t *e;

	for (; done < length; done += n) {
		uint8_t *at;
		int kind;

		if (++pages > SLICE_PAGES)
			return stop(trap, va + done, done, -VMEMU_TRAP_PAUSE);
		kind = access_one(vm, s, va + done, access, &e, trap);
		if (kind < 0 || kind >= VMEMU_SEGV_MAPERR)
			return stop(trap, va + done, done, kind);
		n = chunk(va + done, length - done);
		at = frame_bytes(&vm->frames, leaf_pfn(*e, va + done)) + ((va + done) & PAGE_MASK);
		if (!vm->frames.contents) {
			if (to)
				memset(to + done, 0, n);
		} else if (to) {
			memcpy(to + done, at, n);
		} else {
			memcpy(at, from + done, n);
		}
	}
	trap->done = done;
	return 0;
}

int access_read(struct vm *vm, struct space *s, uint64_t va, void *buffer, uint64_t length, int access,
		struct vmemu_trap *trap)
{
	return transfer(vm, s, va, buffer, NULL, length, access, trap);
}

int access_write(struct vm *vm, struct space *s, uint64_t va, const void *buffer, uint64_t length,
		 struct vmemu_trap *trap)
{
	return transfer(vm, s, va, NULL, buffer, length, VMEMU_WRITE, trap);
}

/* The fault of an access that an entry did not allow, and of the ones to the pages after it, as fault_run; afterwards the entry
 * of the last allows it. Results as access_one's. */
static int fault_and_mark(struct fault *f, uint64_t va, int access, uint64_t npages)
{
	struct vm *vm = f->vm;
	pte_t *e;
	int kind;

	f->before = 0;
	if (va >= TASK_SIZE)
		return refuse(vm, f->space, va, access);
	kind = fault_run(f, va, access == VMEMU_GUP_WRITE ? VMEMU_WRITE : access, npages);
	if (kind < 0 || kind >= VMEMU_SEGV_MAPERR)
		return kind;
	e = table_walk_next(&vm->tables, f->space->root, va + f->before * PAGE_BYTES, &f->walk);
	VM_ASSERT(e && access_allowed(*e, f->walk.writable, access)); /* one fault makes the access possible */
	access_mark(vm, e, access);
	frame_stamp(&vm->frames, pte_pfn(*e));
	return kind;
}

/* A fault is to come at this entry: what it will look at, or copy from, is fetched while another one is dealt with. */
static void fetch_ahead(const struct vm *vm, pte_t e)
{
	const uint8_t *bytes;

	if (!pte_mapped(e) || e & PTE_W)
		return;
	__builtin_prefetch(&vm->frames.of[pte_pfn(e)], 1);
	bytes = frame_bytes(&vm->frames, pte_pfn(e));
	for (unsigned int i = 0; vm->frames.contents && i < FETCH_BYTES; i += 64)
		__builtin_prefetch(bytes + i, 0);
}

/* Made twice: where each access is stamped, and where none is. */
static inline __attribute__((always_inline)) int touch(struct vm *vm, struct space *s, uint64_t va, uint64_t length,
						       int access, uint64_t *counts, struct vmemu_trap *trap, int exact)
{
	uint64_t done = 0, bytes = 0;
	uint32_t cost = 0;
	struct fault f;

	fault_begin(&f, vm, s, trap);
	while (bytes < length) {
		uint64_t at = va + bytes, pages;
		pte_t *e = at < TASK_SIZE ? table_walk_next(&vm->tables, s->root, at, &f.walk) : NULL;
		int kind = VMEMU_NONE;

		if (cost >= SLICE)
			return stop(trap, at, done, -VMEMU_TRAP_PAUSE);
		if (e && access_allowed(*e, f.walk.writable, access)) {
			access_mark(vm, e, access);
			if (exact)
				frame_stamp(&vm->frames, pte_pfn(*e));
			f.before = 0;
		} else {
			pages = ((at & PAGE_MASK) + min_u64(length - bytes, TASK_SIZE) + PAGE_MASK) >> PAGE_SHIFT;
			kind = fault_and_mark(&f, at, access, pages);
			cost += (uint32_t)f.before * SLICE_FAULT + SLICE_FAULT;
		}
		if (f.before) {
			counts[f.kind] += f.before;
			done += f.before;
			at = (at & ~PAGE_MASK) + f.before * PAGE_BYTES;
		}
		if (kind >= 0)
			counts[kind]++;
		if (kind < 0 || kind >= VMEMU_SEGV_MAPERR)
			return stop(trap, at, done, kind);
		cost++;
		done++;
		bytes = at - va;
		bytes += chunk(at, length - bytes);
	}
	trap->done = done;
	return 0;
}

int access_touch(struct vm *vm, struct space *s, uint64_t va, uint64_t length, int access, uint64_t *counts,
		 struct vmemu_trap *trap)
{
	return vm->frames.recency ? touch(vm, s, va, length, access, counts, trap, 1)
				  : touch(vm, s, va, length, access, counts, trap, 0);
}

/* An entry that was found, its address; in bit 0 whether the path to it may be written. Never NULL. */
typedef uintptr_t staged_t;

static const pte_t nothing;

/* Looks for the entries of the next n accesses, so that the host's memory is waited for once. */
static void stage(const struct vm *vm, const struct space *s, const uint64_t *addresses, uint32_t n, staged_t *out,
		  struct walk *w)
{
	table_walk_settle(&vm->tables, w);
	for (uint32_t k = 0; k < n; k++) {
		uint64_t va = addresses[k];
		const pte_t *e;

		out[k] = table_walk_known(&vm->tables, w, va);
		if (!out[k]) {
			e = va < TASK_SIZE ? table_walk_next(&vm->tables, s->root, va, w) : NULL;
			out[k] = (uintptr_t)(e ? e : &nothing) | (uintptr_t)w->writable;
		}
		__builtin_prefetch((const void *)out[k], 1);
	}
}

static pte_t *staged_entry(staged_t at)
{
	return (pte_t *)(at & ~(uintptr_t)1);
}

/* Bits of an entry that tell whether an access is allowed and leaves nothing behind that is not there already. */
struct plain {
	pte_t mask;
	pte_t want;
	uintptr_t path; /* of staged_t */
};

static struct plain plain_of(int access)
{
	const pte_t a = PTE_P | PTE_A;

	if (access == VMEMU_WRITE)
		return (struct plain){ a | PTE_W | PTE_D, a | PTE_W | PTE_D, 1 };
	return (struct plain){ access == VMEMU_FETCH ? a | PTE_NX : a, a, 0 };
}

/* All of n accesses are plain. */
static int all_plain(const staged_t *at, const uint8_t *writes, uint32_t n, int access)
{
	const struct plain kinds[2] = { plain_of(writes ? VMEMU_READ : access), plain_of(VMEMU_WRITE) };
	pte_t bad = 0;

	if (!writes) {
		for (uint32_t k = 0; k < n; k++)
			bad |= ((*staged_entry(at[k]) & kinds[0].mask) ^ kinds[0].want) | (~at[k] & kinds[0].path);
	} else {
		for (uint32_t k = 0; k < n; k++) {
			const struct plain *p = &kinds[writes[k] != 0];

			bad |= ((*staged_entry(at[k]) & p->mask) ^ p->want) | (~at[k] & p->path);
		}
	}
	return !bad;
}

int access_batch(struct vm *vm, struct space *s, const uint64_t *addresses, const uint8_t *writes, int access,
		 uint64_t n, uint8_t *kinds, struct vmemu_trap *trap)
{
	const int exact = vm->frames.recency != NULL;
	staged_t ahead[AHEAD];
	uint64_t i = 0, structure;
	uint32_t cost = 0, m, k;
	struct fault f;

	fault_begin(&f, vm, s, trap);
	for (; i < n; i += k, cost += k) {
		if (cost >= SLICE)
			return stop(trap, addresses[i], i, -VMEMU_TRAP_PAUSE);
		m = k = (uint32_t)min_u64(AHEAD, n - i);
		stage(vm, s, addresses + i, m, ahead, &f.walk);
		memset(kinds + i, VMEMU_NONE, m);
		if (!exact && all_plain(ahead, writes ? writes + i : NULL, m, access))
			continue;
		structure = vm->tables.structure;
		for (k = 0; k < m && structure == vm->tables.structure; k++) {
			pte_t *e = staged_entry(ahead[k]);
			int kind;

			if (writes)
				access = writes[i + k] ? VMEMU_WRITE : VMEMU_READ;
			if (access_allowed(*e, ahead[k] & 1, access)) {
				access_mark(vm, e, access);
				if (exact)
					frame_stamp(&vm->frames, pte_pfn(*e));
				continue;
			}
			cost += SLICE_FAULT;
			if (k + 1 < m)
				fetch_ahead(vm, *staged_entry(ahead[k + 1]));
			kind = fault_and_mark(&f, addresses[i + k], access, 1);
			if (kind < 0)
				return stop(trap, addresses[i + k], i + k, kind);
			kinds[i + k] = (uint8_t)kind;
		}
	}
	trap->done = n;
	return 0;
}
