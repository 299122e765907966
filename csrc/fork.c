/* Fork in its three depths. See fork.h. */
#include "fork.h"

#include "space.h"
#include "swap.h"

/* vma_needs_copy(): without an anonymous frame or a guard every page can be found again by a fault. */
static int needs_copy(const vma_t *v)
{
	return v->anon || v->flags & VMEMU_VM_MAYBE_GUARD;
}

struct copier {
	struct vm *vm;
	struct space *child;
	int eager;
};

/* One entry of the parent for the child; *copy has a reference to its frame (copy_present_pte()). */
static int copy_entry(struct copier *c, const vma_t *v, pte_t *e, pte_t *copy)
{
	struct frames *frames = &c->vm->frames;
	struct frame *fr;
	pfn_t pfn;

	if (!pte_mapped(*e)) {
		if (pte_swapped(*e)) { /* shared, in eager mode too (copy_nonpresent_pte()) */
			*e &= ~PTE_SWAP_EXCLUSIVE;
			swap_get(frames, pte_slot(*e));
		}
		*copy = *e;
		return 0;
	}
	*copy = *e;
	pfn = pte_pfn(*e);
	fr = frame_of(frames, pfn);
	*copy &= v->flags & VMEMU_VM_SHARED ? ~(PTE_A | PTE_D) : ~PTE_A;
	if (fr->flags & FRAME_ZERO)
		return 0;
	if (!(fr->flags & FRAME_ANON)) {
		frame_get(frames, pfn);
		return 0;
	}
	if (c->eager) {
		if (frame_alloc_copy(frames, FRAME_ANON | FRAME_EXCLUSIVE, pfn, &pfn))
			return -ENOMEM;
		*copy = (*copy & ~PTE_FRAME) | ((uint64_t)pfn << PAGE_SHIFT);
		return 0;
	}
	frame_get(frames, pfn);
	fr->flags &= (uint16_t)~FRAME_EXCLUSIVE;
	*e &= ~PTE_W;
	*copy &= ~PTE_W;
	return 0;
}

/* In eager mode the child's frame is its own: writable at once where the mapping is. */
static pte_t settle(const struct copier *c, const vma_t *v, pte_t e)
{
	if (c->eager && pte_mapped(e) && e & PTE_P && v->flags & VMEMU_VM_WRITE &&
	    (v->flags & VMEMU_VM_SOFTDIRTY || e & PTE_SOFT) && frame_of(&c->vm->frames, pte_pfn(e))->flags & FRAME_ANON)
		e |= PTE_W;
	return e;
}

struct copy_range {
	struct copier *c;
	const vma_t *vma;
	uint64_t at;   /* what lies below has been copied, */
	int64_t *work; /* what may still be done until the caller has its turn, 1 for an entry */
};

/* What a copied frame counts for. */
#define FRAME_WORK 64

/* A huge page copied as 512 small ones, where there is no whole block for it. */
static int copy_huge_in_parts(struct copy_range *r, const pte_t *e, uint64_t va)
{
	struct tables *tables = &r->c->vm->tables;

	for (unsigned int i = 0; i < TABLE_ENTRIES; i++) {
		struct leaf leaf;
		pte_t part = pte_of_huge(*e, i), copy;
		int rc = table_own(tables, &r->c->child->root, va + i * PAGE_BYTES, &leaf);

		if (!rc)
			rc = copy_entry(r->c, r->vma, &part, &copy);
		if (rc)
			return rc;
		table_fill(tables, &leaf, settle(r->c, r->vma, copy));
	}
	return 0;
}

/* copy_huge_pmd() */
static int copy_huge(struct copy_range *r, pte_t *e, uint64_t va)
{
	struct tables *tables = &r->c->vm->tables;
	struct frames *frames = &r->c->vm->frames;
	pfn_t head = pte_pfn(*e), new = head;
	struct frame *fr = frame_of(frames, head);
	struct leaf leaf;
	pte_t copy;
	int pool =
		fr->flags & FRAME_HUGETLB; /* what is promised to the parent is not copied for the child beforehand */
	int rc = table_own_level(tables, &r->c->child->root, va, pte_level(*e), &leaf);

	if (rc)
		return rc;
	if (r->c->eager && fr->flags & FRAME_ANON && !pool) {
		rc = folio_alloc(frames, FRAME_ANON, 0, &new);
		if (rc)
			return copy_huge_in_parts(r, e, va);
		frame_of(frames, new)->flags |= FRAME_EXCLUSIVE;
		if (frames->contents)
			memcpy(frame_bytes(frames, new), frame_bytes(frames, head), ENTRY_BYTES(2));
		frames->copied += BLOCK_FRAMES;
	} else {
		folio_get(frames, head);
		fr->flags &= (uint16_t)~FRAME_EXCLUSIVE;
		*e &= ~PTE_W;
	}
	copy = (*e & ~(PTE_A | PTE_FRAME)) | ((uint64_t)new << PAGE_SHIFT);
	rc = table_set_huge(tables, &leaf, pool ? copy : settle(r->c, r->vma, copy));
	if (rc)
		folio_put(frames, new);
	return rc;
}

/* What most entries are: pages of anonymous memory, to be shared write-protected. Goes through [first, last) up to an entry that is
 * something else; returns which. */
static unsigned int share_plain(struct tables *tables, pte_t *e, pte_t *copy, unsigned int first, unsigned int last,
				struct table_info *info)
{
	struct frame *of = tables->frames->of;
	uint32_t shared = 0;
	unsigned int i = first;

	for (; i < last; i++) {
		pte_t entry = e[i];
		struct frame *fr = &of[pte_pfn(entry)];

		if (!entry)
			continue;
		if (!(entry & PTE_P) || !frame_share(fr))
			break;
		if (entry & PTE_W)
			e[i] = entry & ~PTE_W;
		copy[i] = entry & ~(PTE_W | PTE_A);
		shared++;
	}
	info->used = (uint16_t)(info->used + shared);
	info->resident[RESIDENT_ANON] += shared;
	return i;
}

/* copy_pte_range(): the child gets a table where the parent has one, even if it is empty. */
static int copy_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct copy_range *r = ctx;
	struct tables *tables = &r->c->vm->tables;
	struct leaf leaf;
	int rc;

	(void)table;
	if (*r->work <= 0)
		return FORK_PAUSED;
	if (pte_huge(e[first])) {
		r->at = va + leaf_bytes(e[first]);
		*r->work -= r->c->eager ? TABLE_ENTRIES * FRAME_WORK : 1;
		return copy_huge(r, &e[first], va);
	}
	r->at = va + (last - first) * PAGE_BYTES;
	*r->work -= (int64_t)(last - first) * (r->c->eager ? FRAME_WORK : 1);
	rc = table_own(tables, &r->c->child->root, va, &leaf);
	if (rc)
		return rc;
	for (unsigned int i = first; i < last; i++) {
		struct leaf at;
		pte_t copy;

		if (!r->c->eager)
			i = share_plain(tables, e, leaf.pte - leaf.index, i, last, table_info(tables, leaf.table));
		if (i == last || !e[i])
			continue;
		rc = copy_entry(r->c, r->vma, &e[i], &copy);
		if (rc)
			return rc;
		at = (struct leaf){ leaf.table, i, leaf.pte - leaf.index + i };
		table_fill(tables, &at, settle(r->c, r->vma, copy));
	}
	return 0;
}

/* The mapping as the child has it. */
static vma_t child_vma(struct vm *vm, const vma_t *v)
{
	vma_t c = *v;

	c.flags &= ~(uint64_t)(VMEMU_VM_LOCKED | VMEMU_VM_LOCKONFAULT | VMEMU_VM_POOL_OWNER);
	if (c.flags & VMEMU_VM_WIPEONFORK)
		c.anon = 0;
	else if (c.anon)
		c.anon = env_new_anon(&vm->env) | ANON_FORKED;
	return c;
}

/* copy_page_range() over all mappings in address order, from child->forked on; as far as `work` goes, then FORK_PAUSED. While it is
 * paused the parent's other threads may fault, but nobody changes mappings; what the child's mapping is was decided when it was
 * begun. */
static int copy_all(struct vm *vm, struct space *parent, struct space *child, int eager, int64_t work)
{
	struct copier c = { vm, child, eager };
	struct vma_pos pos, cpos;
	const vma_t *v = vmas_find(&parent->vmas, child->forked, &pos);
	int rc;

	for (; v; v = vmas_next(&parent->vmas, &pos)) {
		struct copy_range range = { &c, v, max_u64(v->start, child->forked), &work };

		if (v->flags & VMEMU_VM_DONTCOPY)
			continue;
		if (v->start >= child->forked) {
			vma_t cv = child_vma(vm, v);

			rc = vmas_append(&vm->env, &child->vmas, &cv);
			if (rc)
				return rc;
		}
		if (!needs_copy(vmas_find(&child->vmas, v->start, &cpos)) || v->flags & VMEMU_VM_WIPEONFORK)
			continue;
		rc = table_mirror(&vm->tables, parent->root, &child->root, range.at, v->end);
		if (!rc)
			rc = table_visit(&vm->tables, parent->root, range.at, v->end, copy_entries, &range);
		child->forked = max_u64(range.at, v->start + 1);
		if (rc)
			return rc;
		child->forked = v->end;
	}
	return 0;
}

/* The child's mapping v has nothing reserved in a pool. */
static int disown(struct vm *vm, struct space *child, const vma_t *v)
{
	int rc = vmas_own(&vm->env, &child->vmas, v->start, v->end);

	if (!rc)
		vmas_set_flags(&vm->env, &child->vmas, v->start, v->flags & ~(uint64_t)VMEMU_VM_POOL_OWNER);
	return rc;
}

/* Shares everything; what fork treats specially is then done to the child's own copy of that part. */
static int share_all(struct vm *vm, struct space *parent, struct space *child)
{
	struct vma_pos pos;
	const vma_t *v;
	uint64_t at = 0;
	int rc = 0;

	vmas_share(&vm->env, &parent->vmas, &child->vmas);
	if (parent->root != NO_PFN) {
		child->root = parent->root;
		table_get(&vm->tables, child->root);
	}
	if (!vmas_sums(&parent->vmas)->special)
		return 0;
	while (!rc && (v = vmas_find(&child->vmas, at, &pos)) != NULL) {
		vma_t part = *v;

		at = part.end;
		if (part.flags & VMEMU_VM_DONTCOPY) {
			/* what it reserved is its parent's: the pages go on counting for that */
			if (part.flags & VMEMU_VM_POOL_OWNER)
				rc = disown(vm, child, &part);
			if (!rc)
				rc = space_unmap(vm, child, part.start, part.end);
			continue;
		}
		if (!(part.flags & (VMEMU_VM_LOCKED | VMEMU_VM_WIPEONFORK | VMEMU_VM_POOL_OWNER)))
			continue;
		rc = vmas_own(&vm->env, &child->vmas, part.start, part.end);
		if (!rc && part.flags & VMEMU_VM_WIPEONFORK)
			rc = table_own_range(&vm->tables, &child->root, part.start, part.end, 0);
		if (rc)
			break;
		if (part.flags & VMEMU_VM_WIPEONFORK)
			table_zap(&vm->tables, &child->root, part.start, part.end);
		part = child_vma(vm, &part);
		vmas_set_flags(&vm->env, &child->vmas, part.start, part.flags);
		if (part.flags & VMEMU_VM_WIPEONFORK)
			vmas_set_anon(&child->vmas, part.start, 0);
	}
	return rc;
}

/* What a slice of a fork came to; a failed one leaves nothing. */
static int settle_fork(struct vm *vm, struct space *parent, struct space *child, int rc)
{
	vm->tables.generation++;
	if (rc < 0) {
		vm->frames.copied -= child->copied;
		/* its mappings may say still that pages of a pool are reserved for them */
		vmas_destroy(&vm->env, &child->vmas);
		space_free(vm, child);
	}
	vm->frames.space = parent->birth;
	return rc;
}

int fork_more(struct vm *vm, struct space *parent, struct space *child, int mode, int64_t work)
{
	uint64_t copied = vm->frames.copied;
	int rc;

	vm->frames.space = child->birth;
	rc = child->changes == parent->vmas.changes ? copy_all(vm, parent, child, mode == VMEMU_FORK_EAGER, work)
						    : -EAGAIN;
	child->copied += vm->frames.copied - copied;
	if (!rc)
		child->parent = 0;
	return settle_fork(vm, parent, child, rc);
}

int fork_space(struct vm *vm, struct space *parent, int mode, int64_t work, struct space **out)
{
	struct space *child;
	int rc = space_new(vm, &child);

	if (rc)
		return rc;
	memcpy(child->words, parent->words, VMEMU_NWORDS_INHERITED * sizeof(*child->words));
	child->no_thp = parent->no_thp;
	child->cgroup = parent->cgroup;
	child->ksm = parent->ksm ? ++vm->ksm : 0;
	if (mode == VMEMU_FORK_ON_DEMAND) {
		vm->frames.space = child->birth;
		rc = settle_fork(vm, parent, child, share_all(vm, parent, child));
	} else {
		child->parent = parent->birth;
		child->changes = parent->vmas.changes;
		rc = fork_more(vm, parent, child, mode, work);
	}
	if (rc >= 0)
		*out = child;
	return rc;
}
