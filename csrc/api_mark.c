/* Door: marks on pages and what they are for. See api.h. */
#include "api.h"
#include "lru.h"
#include "mark.h"

/* Lets fn at a range that lies in one mapping. */
static int on_mapping(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end,
		      int (*fn)(struct vm *vm, struct space *s, uint64_t start, uint64_t end))
{
	struct space *s = enter_space(m, space);
	struct vma_pos pos;
	const vma_t *v;

	if (!s)
		return -EBADF;
	v = bad_range(start, end) ? NULL : vmas_find(&s->vmas, start, &pos);
	return leave(m, v && v->start <= start && end <= v->end ? fn(&m->vm, s, start, end) : -EINVAL);
}

int vmemu_space_guard(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	return on_mapping(m, space, start, end, mark_guard);
}

int vmemu_space_unguard(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	return on_mapping(m, space, start, end, mark_unguard);
}

int vmemu_space_lazyfree(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	return on_mapping(m, space, start, end, lru_free);
}

int vmemu_space_cold(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	return on_mapping(m, space, start, end, lru_cold);
}

int vmemu_space_pageout(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	return on_mapping(m, space, start, end, lru_pageout);
}

int vmemu_machine_drain(vmemu_machine *m)
{
	enter(m);
	lru_drain(&m->vm);
	return leave(m, 0);
}

int vmemu_space_clear_refs(vmemu_machine *m, uint32_t space, int what)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, what < 1 || what > 4 ? -EINVAL : mark_clear_refs(&m->vm, s, what));
}

int vmemu_machine_show_soft_dirty(vmemu_machine *m, int on)
{
	enter(m);
	m->vm.options &= ~(uint32_t)VMEMU_OPT_SOFT_DIRTY;
	m->vm.options |= on ? VMEMU_OPT_SOFT_DIRTY : 0;
	return leave(m, 0);
}
