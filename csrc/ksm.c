/* Same-page merging. See ksm.h. */
#include "ksm.h"

#include "faultlog.h"

/* ---- finding ---- */

/* Any good mix of all bits will do: equal hashes are compared byte by byte before anything is merged. */
static uint64_t hash_page(const uint8_t *bytes)
{
	uint64_t h = UINT64_C(0x9e3779b97f4a7c15), word;

	for (size_t i = 0; i < PAGE_BYTES; i += sizeof(word)) {
		memcpy(&word, bytes + i, sizeof(word));
		h = (h ^ word) * UINT64_C(0xff51afd7ed558ccd);
		h ^= h >> 32;
	}
	return h;
}

struct listing {
	const struct vm *vm;
	uint64_t start;
	uint64_t end;
	struct vmemu_ksm_page *out;
	uint32_t n;
	uint32_t cap;
};

static int list_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct listing *l = ctx;

	(void)table;
	for (unsigned int i = first; i < last; i++) {
		uint64_t from = max_u64(va, l->start), end = min_u64(va + leaf_bytes(e[i]), l->end);

		va += leaf_bytes(e[i]);
		if (!pte_mapped(e[i]) || !(frame_of(&l->vm->frames, pte_pfn(e[i]))->flags & FRAME_ANON))
			continue;
		for (; from < end; from += PAGE_BYTES) {
			pfn_t pfn = leaf_pfn(e[i], from);

			if (l->n == l->cap)
				return 1;
			l->out[l->n++] = (struct vmemu_ksm_page){
				.address = from,
				.hash = hash_page(frame_bytes(&l->vm->frames, pfn)),
				.pfn = pfn,
				.merged = (frame_of(&l->vm->frames, pfn)->flags & FRAME_KSM) != 0,
			};
		}
	}
	return 0;
}

uint32_t ksm_pages(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end, struct vmemu_ksm_page *out,
		   uint32_t cap)
{
	struct listing l = { vm, start, end, out, 0, cap };

	(void)table_visit(&vm->tables, s->root, start, end, list_entries, &l);
	return l.n;
}

/* ---- merging ---- */

/* The entry of an anonymous page, in a table of this space's own and no part of a folio (split_huge_page()). */
static int own_page(struct vm *vm, struct space *s, uint64_t va, struct leaf *leaf)
{
	int writable, rc;
	const pte_t *e = table_walk(&vm->tables, s->root, va, &writable);
	struct frame *fr;
	pfn_t pfn;

	if (!e || !pte_mapped(*e))
		return -ENOENT;
	pfn = leaf_pfn(*e, va);
	fr = frame_of(&vm->frames, pfn);
	if (!(fr->flags & FRAME_ANON))
		return -ENOENT;
	if (fr->flags & (FRAME_FREEING | FRAME_HUGETLB) ||
	    (fr->flags & FRAME_LARGE && folio_of(&vm->frames, pfn)->entire > (uint32_t)pte_huge(*e)))
		return -EBUSY; /* in a batch, or another space has it as a huge page */
	rc = table_split_range(&vm->tables, &s->root, va, va + PAGE_BYTES);
	if (!rc)
		rc = table_own(&vm->tables, &s->root, va, leaf);
	if (rc || !(fr->flags & FRAME_LARGE))
		return rc;
	if (folio_of(&vm->frames, pfn)->entire) /* the table was shared: the other side has the huge entry still */
		return -EBUSY;
	folio_dissolve(&vm->frames, folio_head(pfn));
	return 0;
}

/* Nobody may write the frame any more (write_protect_page()). */
static void write_protect(struct vm *vm, const struct leaf *leaf)
{
	struct frame *fr = frame_of(&vm->frames, pte_pfn(*leaf->pte));

	fr->flags = (uint16_t)((fr->flags & ~FRAME_EXCLUSIVE) | FRAME_DIRTY);
	*leaf->pte &= ~(PTE_W | PTE_D);
	vm->tables.generation++;
}

int ksm_make(struct vm *vm, struct space *s, uint64_t va)
{
	struct leaf leaf;
	int rc = own_page(vm, s, va, &leaf);

	if (rc)
		return rc;
	write_protect(vm, &leaf);
	frame_of(&vm->frames, pte_pfn(*leaf.pte))->flags |= FRAME_KSM;
	return 0;
}

int ksm_merge(struct vm *vm, struct space *s, uint64_t va, pfn_t pfn)
{
	const uint64_t flags = VMEMU_VM_READ | VMEMU_VM_WRITE | VMEMU_VM_EXEC;
	int zero = pfn == vm->frames.zero, rc;
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, va, &pos);
	struct leaf leaf;
	pte_t e;

	if (pfn >= vm->frames.nframes || (!zero && !(frame_of(&vm->frames, pfn)->flags & FRAME_KSM)))
		return -ESTALE;
	if (!v || v->start > va)
		return -ENOENT;
	rc = own_page(vm, s, va, &leaf);
	if (rc || pte_pfn(*leaf.pte) == pfn)
		return rc;
	if (memcmp(frame_bytes(&vm->frames, pte_pfn(*leaf.pte)), frame_bytes(&vm->frames, pfn), PAGE_BYTES))
		return -EAGAIN;
	e = pte_leaf(pfn, v->flags & flags) | (*leaf.pte & PTE_SOFT);
	if (zero)
		e |= PTE_D;
	else
		frame_get(&vm->frames, pfn);
	table_set(&vm->tables, &leaf, e);
	return 0;
}

/* ---- taking back ---- */

static int is_merged(const struct vm *vm, pte_t e)
{
	const struct frame *fr = pte_mapped(e) && !pte_huge(e) ? frame_of(&vm->frames, pte_pfn(e)) : NULL;

	return fr && (fr->flags & FRAME_KSM || (fr->flags & FRAME_ZERO && e & PTE_D));
}

struct breaking {
	struct vm *vm;
	struct space *space;
};

/* A frame of its own, clean and write-protected but exclusive (FAULT_FLAG_UNSHARE). */
static int break_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	const struct breaking *b = ctx;
	struct frames *frames = &b->vm->frames;

	for (unsigned int i = first; i < last; i++, va += PAGE_BYTES) {
		struct leaf leaf = { table, i, &e[i] };
		pte_t old = e[i];
		int kind = VMEMU_COW_COPY, rc;
		pfn_t pfn;

		if (!is_merged(b->vm, e[i]))
			continue;
		if (frame_of(frames, pte_pfn(e[i]))->flags & FRAME_ZERO) {
			kind = VMEMU_ZERO_FILL;
			rc = frame_alloc_zeroed(frames, FRAME_ANON | FRAME_EXCLUSIVE, &pfn);
		} else {
			rc = frame_alloc_copy(frames, FRAME_ANON | FRAME_EXCLUSIVE, pte_pfn(e[i]), &pfn);
			b->vm->events[VMEMU_EV_COW_KSM] += !rc;
		}
		if (rc)
			return rc;
		table_set(&b->vm->tables, &leaf, (e[i] & ~(PTE_FRAME | PTE_D)) | ((uint64_t)pfn << PAGE_SHIFT) | PTE_A);
		fault_count(b->vm, b->space, va, VMEMU_READ, kind, old);
	}
	return 0;
}

int ksm_break(struct vm *vm, struct space *s, uint64_t start, uint64_t end)
{
	struct breaking b = { vm, s };
	int rc = table_own_range(&vm->tables, &s->root, start, end, 1);

	return rc ? rc : table_visit(&vm->tables, s->root, start, end, break_entries, &b);
}

struct counting {
	const struct vm *vm;
	uint64_t n;
};

static int count_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct counting *c = ctx;

	(void)table;
	(void)va;
	for (unsigned int i = first; i < last; i++)
		c->n += is_merged(c->vm, e[i]) && pte_pfn(e[i]) == c->vm->frames.zero;
	return 0;
}

uint64_t ksm_zero_pages(const struct vm *vm, const struct space *s, uint64_t start, uint64_t end)
{
	struct counting c = { vm, 0 };

	(void)table_visit(&vm->tables, s->root, start, end, count_entries, &c);
	return c.n;
}
