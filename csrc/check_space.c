/* Invariants of spaces: mappings in order, every entry inside one and in agreement with it. See check.h. */
#include "check.h"

#include "worst.h"

struct vma_check {
	const struct check *c;
	const struct space *space;
	const vma_t *vma; /* NULL: nothing may be mapped here */
};

static int check_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct vma_check *vc = ctx;
	const struct check *c = vc->c;
	const vma_t *v = vc->vma;

	(void)table;
	for (unsigned int i = first; i < last; va += leaf_bytes(e[i++])) {
		const struct frame *fr;
		unsigned long long at = (unsigned long long)va;
		const struct object *obj;

		if (!e[i])
			continue;
		CHECK(v, "space %u: %#llx is in the tables and in no mapping", vc->space->id, at);
		if (e[i] == PTE_GUARD) {
			CHECK(v->flags & VMEMU_VM_MAYBE_GUARD, "space %u: %#llx: guard in a mapping that had none",
			      vc->space->id, at);
			continue;
		}
		if (pte_swapped(e[i])) {
			CHECK(!(v->flags & (VMEMU_VM_SHARED | VMEMU_VM_HUGETLB)) && v->anon,
			      "space %u: %#llx: swap entry in a mapping that has no anonymous memory", vc->space->id,
			      at);
			continue;
		}
		CHECK(v->start <= va && va + leaf_bytes(e[i]) <= v->end,
		      "space %u: huge entry at %#llx reaches out of its mapping", vc->space->id, at);
		fr = frame_of(&c->vm->frames, pte_pfn(e[i]));
		CHECK(!(e[i] & PTE_W) || v->flags & VMEMU_VM_WRITE,
		      "space %u: %#llx is writable in a read-only mapping", vc->space->id, at);
		CHECK(!(e[i] & PTE_W) || e[i] & PTE_SOFT || v->flags & (VMEMU_VM_SOFTDIRTY | VMEMU_VM_HUGETLB),
		      "space %u: %#llx is writable, so that nobody will see it become soft-dirty", vc->space->id, at);
		CHECK(!(e[i] & PTE_P) == !(v->flags & (VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC)),
		      "space %u: %#llx: present bit against PROT_NONE", vc->space->id, at);
		CHECK(!(e[i] & PTE_NX) == !!(v->flags & VMEMU_VM_EXEC), "space %u: %#llx: NX against the mapping",
		      vc->space->id, at);
		CHECK(!(fr->flags & FRAME_HUGETLB) == !(v->flags & VMEMU_VM_HUGETLB),
		      "space %u: %#llx: a page of a pool, or not, against the mapping", vc->space->id, at);
		CHECK(!(v->flags & VMEMU_VM_POOL_OWNER) || folio_of(&c->vm->frames, pte_pfn(e[i]))->reserved,
		      "space %u: %#llx: a page of a pool does not count for its reservation", vc->space->id, at);
		if (fr->flags & FRAME_ANON) {
			CHECK(!(v->flags & VMEMU_VM_SHARED) && v->anon,
			      "space %u: %#llx: anonymous frame in a mapping that has none", vc->space->id, at);
		} else if (fr->flags & FRAME_ZERO) {
			CHECK(!v->object || (e[i] & PTE_D && !(v->flags & VMEMU_VM_SHARED)),
			      "space %u: %#llx: zero page in a mapping of an object", vc->space->id, at);
		} else {
			obj = v->object ? object_get(&c->vm->objects, v->object) : NULL;
			CHECK(obj && object_lookup(obj, vma_index_of(v, va)) == pte_pfn(e[i]),
			      "space %u: %#llx maps frame %u, not its object's page", vc->space->id, at, pte_pfn(e[i]));
		}
	}
	return 0;
}

static int check_slots(const struct check *c, const struct space *s)
{
	const struct vma_index *ix = s->vmas.index;
	uint64_t end = 0;
	sums_t sums = { 0 };

	for (uint32_t k = 0; ix && k < ix->count; k++) {
		const struct vma_block *b = ix->slot[k].block;
		uint64_t hole = 0;

		CHECK(b->count && b->count <= VMA_BLOCK && b->refs, "space %u: VMA block %u is empty", s->id, k);
		CHECK(ix->slot[k].start == b->v[0].start, "space %u: VMA block %u: wrong start", s->id, k);
		for (uint32_t i = 0; i < b->count; i++) {
			const vma_t *v = &b->v[i];
			uint64_t guard = v->flags & VMEMU_VM_GROWSDOWN ? STACK_GUARD : 0;

			CHECK(v->start >= end && v->end > v->start && !((v->start | v->end) & PAGE_MASK) &&
				      v->end <= TASK_SIZE,
			      "space %u: mapping %#llx-%#llx out of order", s->id, (unsigned long long)v->start,
			      (unsigned long long)v->end);
			hole = max_u64(hole, v->start > end + guard ? v->start - end - guard : 0);
			end = v->end;
			sums_add(&sums, v, 1);
		}
		CHECK(hole == ix->slot[k].hole, "space %u: VMA block %u: hole %#llx, counted %#llx", s->id, k,
		      (unsigned long long)ix->slot[k].hole, (unsigned long long)hole);
	}
	for (uint32_t k = 0; ix && k < ix->count; k += VMA_GROUP) {
		uint64_t hole = 0;

		for (uint32_t i = k; i < ix->count && i < k + VMA_GROUP; i++)
			hole = max_u64(hole, ix->slot[i].hole);
		CHECK(ix->hole[k / VMA_GROUP] == hole, "space %u: VMA blocks from %u on: hole %#llx, counted %#llx",
		      s->id, k, (unsigned long long)ix->hole[k / VMA_GROUP], (unsigned long long)hole);
	}
	CHECK(!memcmp(&sums, vmas_sums(&s->vmas), sizeof(sums)), "space %u: sums of its mappings are wrong", s->id);
	return 0;
}

/* Every entry lies in a mapping and agrees with it; so do the holes, which have none. */
static int check_space(const struct check *c, const struct space *s)
{
	struct vma_check vc = { c, s, NULL };
	const struct tables *t = &c->vm->tables;
	struct vma_pos pos;
	uint64_t end = 0;
	int rc = check_slots(c, s);

	for (const vma_t *v = vmas_find(&s->vmas, 0, &pos); v && !rc; v = vmas_next(&s->vmas, &pos)) {
		vc.vma = NULL;
		rc = table_visit(t, s->root, end, v->start, check_entries, &vc);
		vc.vma = v;
		if (!rc)
			rc = table_visit(t, s->root, v->start, v->end, check_entries, &vc);
		end = v->end;
	}
	vc.vma = NULL;
	return rc ? rc : table_visit(t, s->root, end, UINT64_C(1) << LEVEL_SHIFT(LEVELS + 1), check_entries, &vc);
}

static int by_address(const void *a, const void *b)
{
	uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;

	return x < y ? -1 : x > y;
}

/* `n` pointers, each to something whose references `refs_of` gives: as many as there are pointers to it. */
static int check_pointers(const struct check *c, uintptr_t *p, size_t n, const char *what, int blocks, uint32_t *users)
{
	qsort(p, n, sizeof(*p), by_address);
	for (size_t i = 0, same; i < n; i += same) {
		const struct vma_block *b = (const struct vma_block *)p[i];
		uint32_t refs = blocks ? b->refs : ((const struct vma_index *)p[i])->refs;

		for (same = 1; i + same < n && p[i + same] == p[i];)
			same++;
		CHECK(refs == same, "a VMA %s has %u references, found %zu", what, refs, same);
		for (uint32_t k = 0; blocks && k < b->count; k++)
			if (b->v[k].object)
				users[b->v[k].object]++;
	}
	return 0;
}

/* Indexes and blocks that spaces share are counted right, and so are the users of objects. */
static int check_vma_sharing(const struct check *c)
{
	struct vm *vm = c->vm;
	size_t nindex = 0, nblock = 0, at = 0;
	uintptr_t *index, *block;
	uint32_t *users;
	int rc = -ENOMEM;

	for (uint32_t id = 1; id < vm->capacity; id++)
		nindex += vm->spaces[id] && vm->spaces[id]->vmas.index;
	index = malloc((nindex + 1) * sizeof(*index));
	users = calloc(vm->objects.capacity + 1u, sizeof(*users));
	block = NULL;
	if (!index || !users)
		goto out;
	for (uint32_t id = 1; id < vm->capacity; id++)
		if (vm->spaces[id] && vm->spaces[id]->vmas.index)
			index[at++] = (uintptr_t)vm->spaces[id]->vmas.index;
	rc = check_pointers(c, index, nindex, "index", 0, NULL);
	if (rc)
		goto out;
	for (size_t i = 0; i < nindex; i++)
		nblock += i && index[i] == index[i - 1] ? 0 : ((struct vma_index *)index[i])->count;
	block = malloc((nblock + 1) * sizeof(*block));
	rc = -ENOMEM;
	if (!block)
		goto out;
	at = 0;
	for (size_t i = 0; i < nindex; i++) {
		const struct vma_index *ix = (const struct vma_index *)index[i];

		for (uint32_t k = 0; !(i && index[i] == index[i - 1]) && k < ix->count; k++)
			block[at++] = (uintptr_t)ix->slot[k].block;
	}
	rc = check_pointers(c, block, nblock, "block", 1, users);
	for (uint32_t id = 1; !rc && id < vm->objects.capacity; id++)
		if (users[id] != vm->env.users.of[id].count)
			rc = check_broken(c, "object %u: %u mappings, found %u", id, vm->env.users.of[id].count,
					  users[id]);
out:
	free(index);
	free(block);
	free(users);
	return rc;
}

int check_spaces(const struct check *c)
{
	struct vm *vm = c->vm;
	uint64_t account = 0;
	uint32_t n = 0;
	int rc = 0;

	for (uint32_t id = 1; id < vm->capacity; id++)
		if (vm->spaces[id] && vm->spaces[id]->root != NO_PFN)
			table_info(&vm->tables, vm->spaces[id]->root)->paths = 0;
	vm->mapcounts.valid = 0; /* paths is scratch of both */
	for (uint32_t id = 1; id < vm->capacity && !rc; id++) {
		const struct space *s = vm->spaces[id];
		uint32_t *seen;

		if (!s)
			continue;
		n++;
		CHECK(!vm->worth || !vm->worth[id] || vm->worth[id] - 1 == worst_points(vm, s),
		      "space %u is taken to hold %u pages, counted %llu", id, vm->worth[id] - 1,
		      (unsigned long long)worst_points(vm, s));
		account += vmas_sums(&s->vmas)->account;
		if (s->root == NO_PFN) {
			rc = check_space(c, s);
			continue;
		}
		/* spaces that share both root and mappings are looked at once */
		seen = &table_info(&vm->tables, s->root)->paths;
		if (*seen && vm->spaces[*seen]->vmas.index == s->vmas.index)
			continue;
		*seen = id;
		rc = check_space(c, s);
	}
	if (rc)
		return rc;
	for (uint32_t id = 1; id < vm->objects.capacity; id++) {
		const struct object *obj = &vm->objects.of[id];

		account += object_charge(obj) + object_page_charge(obj) * (obj->nframes + obj->nswapped);
	}
	CHECK(account == vm->env.account, "%llu pages charged, counted %llu", (unsigned long long)vm->env.account,
	      (unsigned long long)account);
	CHECK(n == vm->nspaces, "%u spaces, counted %u", vm->nspaces, n);
	return check_vma_sharing(c);
}
