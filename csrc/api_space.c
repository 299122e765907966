/* Door: spaces, accesses and looking at them. See api.h. */
#include "access.h"
#include "api.h"
#include "fault.h"
#include "fork.h"
#include "look.h"
#include "space.h"

/* What a mapping is for good. */
#define SHARED_FLAGS ((uint64_t)(VMEMU_VM_SHARED | VMEMU_VM_MAYSHARE))
#define POOL_FLAGS (VMEMU_VM_HUGETLB | VMEMU_VM_GIANT | VMEMU_VM_POOL_OWNER | VMEMU_VM_POOL_UNMAPPED)

/* n children, all or none. */
static int fork_all(struct vm *vm, struct space *parent, int mode, uint32_t n, uint32_t *ids)
{
	uint64_t copied = vm->frames.copied;
	struct space *child;

	for (uint32_t i = 0; i < n; i++) {
		int rc = fork_space(vm, parent, mode, INT64_MAX, &child);

		if (!rc) {
			ids[i] = child->id;
			continue;
		}
		while (i--)
			space_free(vm, vm->spaces[ids[i]]);
		vm->frames.copied = copied;
		return rc;
	}
	return 0;
}

int vmemu_space_fork(vmemu_machine *m, uint32_t space, int mode, uint32_t n, uint32_t *out)
{
	struct space *s = enter_space(m, space);
	uint32_t *ids;
	int rc;

	if (!s)
		return -EBADF;
	if (mode < VMEMU_FORK_EAGER || mode > VMEMU_FORK_ON_DEMAND)
		return leave(m, -EINVAL);
	ids = host_alloc(&m->vm.host, (n + 1) * sizeof(*ids));
	if (!ids)
		return leave(m, -ENOMEM);
	rc = fork_all(&m->vm, s, mode, n, ids);
	if (!rc)
		memcpy(out, ids, n * sizeof(*ids));
	host_free(&m->vm.host, ids, (n + 1) * sizeof(*ids));
	return leave(m, rc);
}

int vmemu_space_new(vmemu_machine *m, uint32_t *space)
{
	struct space *s;
	int rc;

	enter(m);
	rc = space_new(&m->vm, &s);
	if (!rc)
		*space = s->id;
	return leave(m, rc);
}

int64_t vmemu_machine_spaces(vmemu_machine *m, uint32_t *out, uint64_t cap)
{
	const struct vm *vm = &m->vm;
	uint64_t n = 0;

	enter(m);
	for (uint32_t id = 1; id < vm->capacity; id++) {
		if (!vm->spaces[id])
			continue;
		if (n < cap)
			out[n] = id;
		n++;
	}
	(void)leave(m, 0);
	return (int64_t)n;
}

int vmemu_space_free(vmemu_machine *m, uint32_t space)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	space_free(&m->vm, s);
	return leave(m, 0);
}

int vmemu_space_abandon(vmemu_machine *m, uint32_t space)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	space_abandon(&m->vm, s);
	return leave(m, 0);
}

int vmemu_space_info(vmemu_machine *m, uint32_t space, struct vmemu_space_info *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	look_space(&m->vm, s, out);
	return leave(m, 0);
}

int vmemu_space_sums(vmemu_machine *m, uint32_t space, struct vmemu_sums *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	*out = *vmas_sums(&s->vmas);
	return leave(m, 0);
}

int vmemu_space_faults(vmemu_machine *m, uint32_t space, uint64_t *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	memcpy(out, s->faults, sizeof(s->faults));
	return leave(m, 0);
}

int vmemu_space_set_faults(vmemu_machine *m, uint32_t space, const uint64_t *in)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	memcpy(s->faults, in, sizeof(s->faults));
	return leave(m, 0);
}

int vmemu_space_words(vmemu_machine *m, uint32_t space, uint64_t *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	memcpy(out, s->words, sizeof(s->words));
	return leave(m, 0);
}

int vmemu_space_set_words(vmemu_machine *m, uint32_t space, const uint64_t *in)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	memcpy(s->words, in, sizeof(s->words));
	return leave(m, 0);
}

/* ---- mappings ---- */

int vmemu_space_find(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_vma *out)
{
	struct space *s = enter_space(m, space);
	struct vma_pos pos;
	const vma_t *v;

	if (!s)
		return -EBADF;
	v = vmas_find(&s->vmas, address, &pos);
	if (v)
		*out = *v;
	return leave(m, v ? 0 : -ENOENT);
}

int vmemu_space_find_before(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_vma *out)
{
	struct space *s = enter_space(m, space);
	struct vma_pos pos;
	const vma_t *v;

	if (!s)
		return -EBADF;
	(void)vmas_find(&s->vmas, address, &pos);
	v = vmas_prev(&s->vmas, &pos);
	if (v)
		*out = *v;
	return leave(m, v ? 0 : -ENOENT);
}

int vmemu_space_vmas(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_vma *out, uint32_t cap)
{
	struct space *s = enter_space(m, space);
	struct vma_pos pos;
	const vma_t *v;
	uint32_t n = 0;

	if (!s)
		return -EBADF;
	for (v = vmas_find(&s->vmas, address, &pos); v && n < cap; v = vmas_next(&s->vmas, &pos))
		out[n++] = *v;
	return leave(m, (int)n);
}

int vmemu_space_hole(vmemu_machine *m, uint32_t space, uint64_t low, uint64_t high, uint64_t length, uint64_t align,
		     int top, uint64_t *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (!length || length & PAGE_MASK || !align || align & PAGE_MASK || low & PAGE_MASK || high > TASK_SIZE)
		return leave(m, -EINVAL);
	return leave(m, vmas_hole(&s->vmas, low, high, length, align, top, out));
}

/* A mapping has HUGETLB if its object has, of the same size of page, and may reserve only what is free. */
static int bad_pool_vma(const vmemu_machine *m, const struct vmemu_vma *v)
{
	const struct object *obj = v->object ? object_get(&m->vm.objects, v->object) : NULL;
	int giant = (v->flags & VMEMU_VM_GIANT) != 0;
	uint64_t pages = vma_pages(v) / HUGE_PAGES(giant);

	if (!(v->flags & VMEMU_VM_HUGETLB) || !obj || !(obj->kind & VMEMU_OBJ_HUGETLB))
		return v->flags & POOL_FLAGS || (obj && obj->kind & VMEMU_OBJ_HUGETLB);
	if (!(obj->kind & VMEMU_OBJ_GIANT) != !giant || !(v->flags & VMEMU_VM_DONTEXPAND) || !vma_aligned(v))
		return 1;
	if (vma_index_of(v, v->end) > object_pages(obj))
		return 1;
	return v->flags & VMEMU_VM_POOL_OWNER &&
	       (v->flags & VMEMU_VM_SHARED ||
		m->vm.frames.pools[giant].free < fault_pool_reserved(&m->vm, giant) + pages);
}

int vmemu_space_map(vmemu_machine *m, uint32_t space, const struct vmemu_vma *vma, int apart)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (bad_range(vma->start, vma->end) || vma->pgoff >> 52 || (vma->flags & SHARED_FLAGS && !vma->object) ||
	    (vma->object && !object_get(&m->vm.objects, vma->object)))
		return leave(m, -EINVAL);
	if (bad_pool_vma(m, vma))
		return leave(m, -EINVAL);
	return leave(m, space_map(&m->vm, s, vma, apart));
}

int vmemu_space_unmap(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, bad_range(start, end) ? -EINVAL : space_unmap(&m->vm, s, start, end));
}

int vmemu_space_reflag(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, uint64_t flags)
{
	struct space *s = enter_space(m, space);

	struct vma_pos pos;
	const vma_t *v;

	if (!s)
		return -EBADF;
	v = vmas_find(&s->vmas, start, &pos);
	if (bad_range(start, end) || !v || (v->flags ^ flags) & (SHARED_FLAGS | POOL_FLAGS))
		return leave(m, -EINVAL);
	return leave(m, space_reflag(&m->vm, s, start, end, flags));
}

int vmemu_space_prepare_anon(vmemu_machine *m, uint32_t space, uint64_t at)
{
	struct space *s = enter_space(m, space);
	struct vma_pos pos;
	const vma_t *v;
	int rc;

	if (!s)
		return -EBADF;
	v = vmas_find(&s->vmas, at, &pos);
	if (!v || v->start > at)
		return leave(m, -ENOENT);
	rc = vmas_own(&m->vm.env, &s->vmas, v->start, v->end);
	return leave(m, rc ? rc : vmas_prepare_anon(&m->vm.env, &s->vmas, at));
}

int vmemu_space_split(vmemu_machine *m, uint32_t space, uint64_t at)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, at & PAGE_MASK || at >= TASK_SIZE ? -EINVAL : space_split(&m->vm, s, at));
}

int vmemu_space_zap(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, bad_range(start, end) ? -EINVAL : space_zap(&m->vm, s, start, end));
}

int vmemu_space_move(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, uint64_t to, uint64_t length,
		     int keep)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (bad_range(start, end) || length > TASK_SIZE || bad_range(to, to + length) || length < end - start ||
	    (to < end && start < to + length))
		return leave(m, -EINVAL);
	return leave(m, space_move(&m->vm, s, start, end, to, length, keep));
}

int vmemu_space_extend(vmemu_machine *m, uint32_t space, uint64_t edge, uint64_t to, int down)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (bad_range(down ? to : edge, down ? edge : to))
		return leave(m, -EINVAL);
	return leave(m, space_extend(&m->vm, s, edge, to, down));
}

/* ---- accesses ---- */

int vmemu_space_read(vmemu_machine *m, uint32_t space, uint64_t address, void *buffer, uint64_t length, int access,
		     struct vmemu_trap *trap)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (access != VMEMU_READ && access != VMEMU_FETCH)
		return leave(m, -EINVAL);
	return leave(m, access_read(&m->vm, s, address, buffer, length, access, trap));
}

int vmemu_space_write(vmemu_machine *m, uint32_t space, uint64_t address, const void *buffer, uint64_t length,
		      struct vmemu_trap *trap)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, access_write(&m->vm, s, address, buffer, length, trap));
}

int vmemu_space_touch(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t length, int access, uint64_t *counts,
		      struct vmemu_trap *trap)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (access < VMEMU_READ || access > VMEMU_GUP_WRITE)
		return leave(m, -EINVAL);
	return leave(m, access_touch(&m->vm, s, address, length, access, counts, trap));
}

int vmemu_space_access(vmemu_machine *m, uint32_t space, const uint64_t *addresses, const uint8_t *writes, int access,
		       uint64_t n, uint8_t *kinds, struct vmemu_trap *trap)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	if (access < VMEMU_READ || access > VMEMU_FETCH)
		return leave(m, -EINVAL);
	return leave(m, access_batch(&m->vm, s, addresses, writes, access, n, kinds, trap));
}

/* ---- looking ---- */

int vmemu_space_pagemap(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t npages, uint64_t *out)
{
	struct space *s = enter_space(m, space);
	int rc;

	if (!s)
		return -EBADF;
	if (address & PAGE_MASK || address > TASK_SIZE || npages > (TASK_SIZE - address) >> PAGE_SHIFT)
		return leave(m, -EINVAL);
	rc = look_mapcounts(&m->vm);
	if (!rc)
		look_pagemap(&m->vm, s, address, npages, out);
	return leave(m, rc);
}

int vmemu_space_translate(vmemu_machine *m, uint32_t space, uint64_t address, struct vmemu_translation *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, look_translate(&m->vm, s, address, out));
}

int vmemu_space_usage(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, struct vmemu_usage *out)
{
	struct space *s = enter_space(m, space);
	int rc;

	if (!s)
		return -EBADF;
	rc = bad_range(start, end) ? -EINVAL : look_mapcounts(&m->vm);
	if (!rc)
		look_usage(&m->vm, s, start, end, out);
	return leave(m, rc);
}

int vmemu_space_reset_peak(vmemu_machine *m, uint32_t space)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	s->peak_rss = 0;
	return leave(m, 0);
}

int64_t vmemu_space_peek(vmemu_machine *m, uint32_t space, uint64_t address, void *buffer, uint64_t length)
{
	struct space *s = enter_space(m, space);
	uint64_t n;

	if (!s)
		return -EBADF;
	n = address < TASK_SIZE ? look_peek(&m->vm, s, address, buffer, min_u64(length, TASK_SIZE - address)) : 0;
	(void)leave(m, 0);
	return (int64_t)n;
}

int vmemu_space_mincore(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, uint8_t *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	return leave(m, bad_range(start, end) ? -EINVAL : look_mincore(&m->vm, s, start, end, out));
}
