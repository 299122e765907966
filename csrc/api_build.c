/* Door: spaces made in one piece and put in another's place. See api.h. */
#include "api.h"
#include "space.h"

#define POOL_FLAGS (VMEMU_VM_HUGETLB | VMEMU_VM_GIANT | VMEMU_VM_POOL_OWNER | VMEMU_VM_POOL_UNMAPPED)

/* In order, of nothing but small pages, and the objects are there. */
static int bad_vmas(const vmemu_machine *m, const struct vmemu_vma *v, uint32_t n)
{
	for (uint64_t low = 0; n; n--, low = v->end, v++) {
		const struct object *obj = v->object ? object_get(&m->vm.objects, v->object) : NULL;

		if (bad_range(v->start, v->end) || v->start < low || v->pgoff >> 52 || v->flags & POOL_FLAGS ||
		    (v->flags & (VMEMU_VM_SHARED | VMEMU_VM_MAYSHARE) && !v->object) ||
		    (obj && obj->kind & VMEMU_OBJ_HUGETLB))
			return -EINVAL;
		if (v->object && !obj)
			return -ESTALE;
	}
	return 0;
}

int vmemu_space_build(vmemu_machine *m, const struct vmemu_vma *vmas, uint32_t n, const uint64_t *words,
		      uint32_t *space)
{
	struct space *s;
	int rc;

	enter(m);
	rc = bad_vmas(m, vmas, n);
	if (!rc)
		rc = space_build(&m->vm, vmas, n, words, &s);
	if (!rc)
		*space = s->id;
	return leave(m, rc);
}

int vmemu_space_succeed(vmemu_machine *m, uint32_t space, uint32_t old)
{
	struct space *o = enter_space(m, old), *s;

	if (!o)
		return -EBADF;
	s = space && space < m->vm.capacity ? m->vm.spaces[space] : NULL;
	if (!s || s == o)
		return leave(m, s ? -EINVAL : -EBADF);
	space_succeed(&m->vm, s, o);
	return leave(m, 0);
}
