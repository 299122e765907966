/* Spaces: taking pages of an object out of all of them. See space.h. */
#include "space.h"

struct object_zap {
	struct vm *vm;
	int copies;
	uint64_t mapped; /* entries that still map one of the object's frames */
};

/* In place, in shared tables too: the page is gone for everybody who maps it there. */
static int zap_entries(void *ctx, pfn_t table, pte_t *e, unsigned int first, unsigned int last, uint64_t va)
{
	struct object_zap *z = ctx;

	(void)va;
	for (unsigned int i = first; i < last; i++) {
		struct leaf leaf = { table, i, &e[i] };
		int cached;

		if (z->copies && pte_swapped(e[i]))
			table_set(&z->vm->tables, &leaf, 0);
		if (!pte_mapped(e[i]) || pte_huge(e[i]))
			continue;
		cached = (frame_of(&z->vm->frames, pte_pfn(e[i]))->flags & FRAME_OBJECT) != 0;
		if (!cached && !z->copies)
			continue;
		z->mapped -= (uint64_t)cached;
		table_set(&z->vm->tables, &leaf, 0);
	}
	return 0;
}

/* Entries that map the object's frames [first, last): all their references but the object's own. */
static uint64_t mapped_entries(const struct vm *vm, const struct object *obj, uint64_t first, uint64_t last)
{
	uint64_t n = 0;

	for (uint64_t i = object_next(obj, first); i < last; i = object_next(obj, i + 1))
		n += frame_of(&vm->frames, object_lookup(obj, i))->refs - 1;
	return n;
}

/* Nobody else has this block of mappings: seeing it here is seeing it for good. */
static int seen_once(const struct space *s, struct vma_pos pos)
{
	return s->vmas.index->refs == 1 && s->vmas.index->slot[pos.block].block->refs == 1;
}

void space_unmap_object(struct vm *vm, uint32_t object, uint64_t first, uint64_t last, int copies)
{
	const struct object *obj = object_get(&vm->objects, object);
	struct object_zap z = { vm, copies, mapped_entries(vm, obj, first, last) };
	uint32_t left = vm->env.users.of[object].count;

	spaces_stale(vm);
	for (uint32_t id = 1; left && (copies || z.mapped) && id < vm->capacity; id++) {
		struct space *s = vm->spaces[id];
		struct vma_pos pos;
		const vma_t *v = s ? vmas_find(&s->vmas, 0, &pos) : NULL;

		for (; left && (copies || z.mapped) && v; v = vmas_next(&s->vmas, &pos)) {
			uint64_t from, to;

			if (v->object != object)
				continue;
			left -= (uint32_t)seen_once(s, pos);
			from = max_u64(first, v->pgoff);
			to = min_u64(last, v->pgoff + vma_pages(v));
			if (from >= to)
				continue;
			from = v->start + ((from - v->pgoff) << PAGE_SHIFT);
			to = v->start + ((to - v->pgoff) << PAGE_SHIFT);
			space_mark_peak(vm, s, from, to);
			(void)table_visit(&vm->tables, s->root, from, to, zap_entries, &z);
		}
	}
}
