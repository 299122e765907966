/* Invariants, executable. See check.h; what is checked is what the headers of frame, table, vma and object promise. */
#include "check.h"

#include <stdarg.h>

struct check {
	struct vm *vm;
	uint32_t *refs; /* recounted, by pfn */
	char *msg;
	size_t size;
};

static int broken(const struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int broken(const struct check *c, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(c->msg, c->size, format, args);
	va_end(args);
	return -EUCLEAN;
}

#define CHECK(cond, ...)                                                                                               \
	do {                                                                                                           \
		if (!(cond))                                                                                           \
			return broken(c, __VA_ARGS__);                                                                 \
	} while (0)

/* ---- frames ---- */

static int check_frames(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	uint64_t free = 0, anon = 0, file = 0, shmem = 0, tables = 0;

	for (uint64_t b = 0; b < f->virgin; b++) {
		const struct block *blk = &f->blocks[b];
		uint32_t n = (uint32_t)min_u64(BLOCK_FRAMES, f->nframes - b * BLOCK_FRAMES), used = 0, listed = 0;

		for (uint32_t i = 0; i < n; i++) {
			uint32_t flags = f->of[b * BLOCK_FRAMES + i].flags;

			used += flags & FRAME_USED ? 1 : 0;
			anon += flags & FRAME_ANON ? 1 : 0;
			file += flags & FRAME_FILE ? 1 : 0;
			shmem += flags & FRAME_SHMEM ? 1 : 0;
			tables += flags & FRAME_TABLE ? 1 : 0;
		}
		for (uint32_t i = blk->head; i; i = f->of[b * BLOCK_FRAMES + i - 1].refs) {
			CHECK(i <= n && !(f->of[b * BLOCK_FRAMES + i - 1].flags & FRAME_USED),
			      "block %llu: frame %u is in the free list and in use", (unsigned long long)b, i - 1);
			CHECK(++listed <= n, "block %llu: free list has a loop", (unsigned long long)b);
		}
		CHECK(used == blk->used && used + listed + (n - blk->fresh) == n,
		      "block %llu: %u frames used, counted %u, %u listed free, fresh from %u", (unsigned long long)b,
		      blk->used, used, listed, blk->fresh);
		free += n - used;
	}
	free += f->nframes - min_u64(f->virgin * BLOCK_FRAMES, f->nframes);
	CHECK(free == f->free, "%llu frames free, counted %llu", (unsigned long long)f->free, (unsigned long long)free);
	CHECK(anon == f->anon && file == f->file && shmem == f->shmem && tables == f->tables,
	      "frames by kind: anon %llu file %llu shmem %llu tables %llu, counted %llu %llu %llu %llu",
	      (unsigned long long)f->anon, (unsigned long long)f->file, (unsigned long long)f->shmem,
	      (unsigned long long)f->tables, (unsigned long long)anon, (unsigned long long)file,
	      (unsigned long long)shmem, (unsigned long long)tables);
	return 0;
}

/* ---- tables ---- */

static int check_leaf_entry(const struct check *c, pfn_t table, pte_t e, uint32_t *resident)
{
	const struct frames *f = &c->vm->frames;
	const struct frame *fr;
	pfn_t pfn = pte_pfn(e);

	CHECK(pte_mapped(e), "table %u: entry %#llx holds nothing", table, (unsigned long long)e);
	CHECK(pfn < f->nframes && f->of[pfn].flags & FRAME_USED && !(f->of[pfn].flags & FRAME_TABLE),
	      "table %u: entry %#llx maps a frame that is free or a table", table, (unsigned long long)e);
	fr = &f->of[pfn];
	if (fr->flags & FRAME_ZERO) {
		CHECK(!(e & PTE_W), "table %u: the zero page is mapped writable", table);
		return 0;
	}
	c->refs[pfn]++;
	CHECK(!(fr->flags & FRAME_ANON && e & PTE_W) || fr->flags & FRAME_EXCLUSIVE,
	      "frame %u: anonymous, writable, not exclusive", pfn);
	resident[fr->flags & FRAME_ANON ? RESIDENT_ANON : fr->flags & FRAME_SHMEM ? RESIDENT_SHMEM : RESIDENT_FILE]++;
	return 0;
}

static int check_table(const struct check *c, pfn_t table)
{
	const struct tables *t = &c->vm->tables;
	const struct table_info *info = table_info(t, table);
	const pte_t *e = table_entries(t, table);
	uint32_t used = 0, resident[NRESIDENT] = { 0 };

	CHECK(info->level >= 1 && info->level <= LEVELS, "table %u: level %u", table, info->level);
	for (unsigned int i = 0; i < TABLE_ENTRIES; i++) {
		pfn_t pfn = pte_pfn(e[i]);
		int rc;

		if (!e[i])
			continue;
		used++;
		if (info->level == 1) {
			rc = check_leaf_entry(c, table, e[i], resident);
			if (rc)
				return rc;
			continue;
		}
		CHECK(pfn < c->vm->frames.nframes && c->vm->frames.of[pfn].flags & FRAME_TABLE &&
			      table_info(t, pfn)->level == info->level - 1,
		      "table %u: entry %u does not point to a table of the next level", table, i);
		CHECK(!(e[i] & PTE_W) || c->vm->frames.of[pfn].refs == 1,
		      "table %u: entry %u leads writable to a shared table", table, i);
		c->refs[pfn]++;
	}
	CHECK(used == info->used, "table %u: %u entries used, counted %u", table, info->used, used);
	for (int k = 0; k < NRESIDENT; k++)
		CHECK(info->level > 1 || resident[k] == info->resident[k],
		      "table %u: %u resident of kind %d, counted %u", table, info->resident[k], k, resident[k]);
	return 0;
}

static int check_tables(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes), shared = 0;

	for (uint32_t id = 1; id < c->vm->capacity; id++)
		if (c->vm->spaces[id] && c->vm->spaces[id]->root != NO_PFN)
			c->refs[c->vm->spaces[id]->root]++;
	for (uint64_t pfn = 0; pfn < used; pfn++) {
		int rc;

		if (!(f->of[pfn].flags & FRAME_TABLE))
			continue;
		shared += f->of[pfn].refs - 1;
		rc = check_table(c, (pfn_t)pfn);
		if (rc)
			return rc;
	}
	CHECK(shared == c->vm->tables.shared, "%llu references to shared tables, counted %llu",
	      (unsigned long long)c->vm->tables.shared, (unsigned long long)shared);
	return 0;
}

/* ---- objects ---- */

static int check_objects(const struct check *c)
{
	const struct objects *o = &c->vm->objects;

	for (uint32_t id = 1; id < o->capacity; id++) {
		const struct object *obj = object_get(o, id);
		uint64_t n = 0;

		if (!obj)
			continue;
		CHECK(obj->held || c->vm->env.users.of[id].count, "object %u: nobody needs it", id);
		for (uint64_t i = object_next(obj, 0); i != UINT64_MAX; i = object_next(obj, i + 1), n++) {
			pfn_t pfn = object_lookup(obj, i);
			uint32_t kind = obj->kind & VMEMU_OBJ_SHMEM ? FRAME_SHMEM : FRAME_FILE;

			CHECK(i < object_pages(obj), "object %u: page %llu is beyond its end", id,
			      (unsigned long long)i);
			CHECK(frame_of(&c->vm->frames, pfn)->flags & kind, "object %u: frame %u is not of its kind", id,
			      pfn);
			c->refs[pfn]++;
		}
		CHECK(n == obj->nframes, "object %u: %llu frames, counted %llu", id, (unsigned long long)obj->nframes,
		      (unsigned long long)n);
	}
	return 0;
}

static int check_refs(const struct check *c)
{
	const struct frames *f = &c->vm->frames;
	uint64_t used = min_u64(f->virgin * BLOCK_FRAMES, f->nframes);

	if (f->zero != NO_PFN)
		c->refs[f->zero]++; /* the boot's */
	for (uint64_t pfn = 0; pfn < used; pfn++) {
		const struct frame *fr = &f->of[pfn];

		if (!(fr->flags & FRAME_USED))
			continue;
		CHECK(fr->refs == c->refs[pfn], "frame %llu (flags %#x): %u references, found %u",
		      (unsigned long long)pfn, fr->flags, fr->refs, c->refs[pfn]);
		CHECK(!(fr->flags & FRAME_EXCLUSIVE) || (fr->flags & FRAME_ANON && fr->refs == 1),
		      "frame %llu: exclusive with %u references", (unsigned long long)pfn, fr->refs);
	}
	return 0;
}

/* ---- spaces ---- */

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
	for (unsigned int i = first; i < last; i++, va += PAGE_BYTES) {
		const struct frame *fr;
		unsigned long long at = (unsigned long long)va;
		const struct object *obj;

		if (!e[i])
			continue;
		CHECK(v, "space %u: %#llx is in the tables and in no mapping", vc->space->id, at);
		fr = frame_of(&c->vm->frames, pte_pfn(e[i]));
		CHECK(!(e[i] & PTE_W) || v->flags & VMEMU_VM_WRITE,
		      "space %u: %#llx is writable in a read-only mapping", vc->space->id, at);
		CHECK(!(e[i] & PTE_P) == !(v->flags & (VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC)),
		      "space %u: %#llx: present bit against PROT_NONE", vc->space->id, at);
		CHECK(!(e[i] & PTE_NX) == !!(v->flags & VMEMU_VM_EXEC), "space %u: %#llx: NX against the mapping",
		      vc->space->id, at);
		if (fr->flags & FRAME_ANON) {
			CHECK(!(v->flags & VMEMU_VM_SHARED) && v->anon,
			      "space %u: %#llx: anonymous frame in a mapping that has none", vc->space->id, at);
		} else if (fr->flags & FRAME_ZERO) {
			CHECK(!v->object, "space %u: %#llx: zero page in a mapping of an object", vc->space->id, at);
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
	CHECK(!memcmp(&sums, &s->vmas.sums, sizeof(sums)), "space %u: sums of its mappings are wrong", s->id);
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
			rc = broken(c, "object %u: %u mappings, found %u", id, vm->env.users.of[id].count, users[id]);
out:
	free(index);
	free(block);
	free(users);
	return rc;
}

static int check_spaces(const struct check *c)
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
		account += s->vmas.sums.account;
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
	for (uint32_t id = 1; id < vm->objects.capacity; id++)
		account += object_charge(&vm->objects.of[id]);
	CHECK(account == vm->env.account, "%llu pages charged, counted %llu", (unsigned long long)vm->env.account,
	      (unsigned long long)account);
	CHECK(n == vm->nspaces, "%u spaces, counted %u", vm->nspaces, n);
	return check_vma_sharing(c);
}

int check_machine(struct vm *vm, char *msg, size_t size)
{
	struct check c = { vm, NULL, msg, size };
	int rc;

	c.refs = calloc(min_u64(vm->frames.virgin * BLOCK_FRAMES, vm->frames.nframes) + 1, sizeof(*c.refs));
	if (!c.refs)
		return -ENOMEM;
	rc = check_frames(&c);
	if (!rc)
		rc = check_tables(&c);
	if (!rc)
		rc = check_objects(&c);
	if (!rc)
		rc = check_refs(&c);
	if (!rc)
		rc = check_spaces(&c);
	free(c.refs);
	return rc;
}
