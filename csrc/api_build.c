/* Door: spaces made in one piece and put in another's place. See api.h. */
#include "access.h"
#include "api.h"
#include "space.h"

/* What a mapping is for good. */
#define SHARED_FLAGS ((uint64_t)(VMEMU_VM_SHARED | VMEMU_VM_MAYSHARE))
#define POOL_FLAGS (VMEMU_VM_HUGETLB | VMEMU_VM_GIANT | VMEMU_VM_POOL_OWNER | VMEMU_VM_POOL_UNMAPPED)

/* In order, of nothing but small pages, and the objects are there. */
static int bad_vmas(const vmemu_machine *m, const struct vmemu_vma *v, uint32_t n)
{
	for (uint64_t low = 0; n; n--, low = v->end, v++) {
		const struct object *obj = v->object ? object_get(&m->vm.objects, v->object) : NULL;

		if (bad_range(v->start, v->end) || v->start < low || v->pgoff >> 52 || v->flags & POOL_FLAGS ||
		    (v->flags & SHARED_FLAGS && !v->object) || (obj && obj->kind & VMEMU_OBJ_HUGETLB))
			return -EINVAL;
		if (v->object && !obj)
			return -ESTALE;
	}
	return 0;
}

/* A change is one that vmemu_space_reflag would make. */
static int change_one(struct vm *vm, struct space *s, const struct vmemu_change *c)
{
	struct vma_pos pos;
	const vma_t *v = vmas_find(&s->vmas, c->start, &pos);

	if (bad_range(c->start, c->end) || !v || (v->flags ^ c->flags) & (SHARED_FLAGS | POOL_FLAGS))
		return -EINVAL;
	return space_reflag(vm, s, c->start, c->end, c->flags);
}

static int write_and_change(struct vm *vm, struct space *s, const struct vmemu_pattern *p, struct vmemu_built *out)
{
	int rc = 0;

	vm->frames.space = s->birth;
	vm->frames.payer = s->cgroup;
	for (out->written = 0; out->written < p->nwrites; out->written++) {
		const struct vmemu_write *w = &p->writes[out->written];

		rc = access_write(vm, s, w->address, w->data, w->length, &out->trap);
		if (rc)
			return rc;
	}
	for (uint32_t i = 0; i < p->nchanges && !rc; i++)
		rc = change_one(vm, s, &p->changes[i]);
	return rc;
}

int vmemu_space_build(vmemu_machine *m, const struct vmemu_pattern *pattern, uint32_t cgroup, struct vmemu_built *out)
{
	struct space *s;
	int rc;

	enter(m);
	rc = bad_vmas(m, pattern->vmas, pattern->nvmas);
	if (!rc)
		rc = space_build(&m->vm, pattern->vmas, pattern->nvmas, pattern->words, &s);
	if (rc)
		return leave(m, rc);
	s->cgroup = cgroup_get(&m->vm.frames.cgroups, cgroup) ? cgroup : 0;
	rc = write_and_change(&m->vm, s, pattern, out);
	if (rc < 0)
		space_abandon(&m->vm, s);
	else
		out->space = s->id;
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
