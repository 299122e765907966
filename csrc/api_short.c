/* Door: what is called most often, in forms that are cheap to call from Python. See api.h. */
#include "access.h"
#include "api.h"
#include "fork.h"
#include "space.h"

/* How an access came out, in one number. */
static int64_t outcome(int rc, const struct vmemu_trap *trap)
{
	if (rc <= 0)
		return rc;
	return (int64_t)(trap->done << 8) | (rc == VMEMU_TRAP_FAULT ? (int64_t)trap->kind : VMEMU_STOPPED);
}

int64_t vmemu_space_read_short(vmemu_machine *m, uint32_t space, uint64_t address, void *buffer, uint32_t length)
{
	struct space *s = enter_space(m, space);
	struct vmemu_trap trap;

	if (!s)
		return -EBADF;
	return outcome(leave(m, access_read(&m->vm, s, address, buffer, length, VMEMU_READ, &trap)), &trap);
}

int64_t vmemu_space_write_short(vmemu_machine *m, uint32_t space, uint64_t address, const void *buffer, uint32_t length)
{
	struct space *s = enter_space(m, space);
	struct vmemu_trap trap;

	if (!s)
		return -EBADF;
	return outcome(leave(m, access_write(&m->vm, s, address, buffer, length, &trap)), &trap);
}

int64_t vmemu_space_touch_short(vmemu_machine *m, uint32_t space, uint64_t address, uint64_t length, int access,
				void *counts)
{
	struct space *s = enter_space(m, space);
	uint64_t found[VMEMU_NKINDS]; /* what is given may lie at any address */
	struct vmemu_trap trap;
	int rc;

	if (!s)
		return -EBADF;
	if (access != VMEMU_READ && access != VMEMU_WRITE)
		return leave(m, -EINVAL);
	memcpy(found, counts, sizeof(found));
	rc = leave(m, access_touch(&m->vm, s, address, length, access, found, &trap));
	memcpy(counts, found, sizeof(found));
	return outcome(rc, &trap);
}

int64_t vmemu_space_fork_one(vmemu_machine *m, uint32_t space, int mode, uint64_t most)
{
	struct space *s = enter_space(m, space), *child;
	int64_t rc;

	if (!s)
		return -EBADF;
	if (mode < VMEMU_FORK_EAGER || mode > VMEMU_FORK_ON_DEMAND)
		return leave(m, -EINVAL);
	if (vmas_sums(&s->vmas)->account > most)
		return leave(m, -EDQUOT);
	rc = fork_space(&m->vm, s, mode, FORK_SLICE, &child);
	if (rc >= 0)
		rc = rc * VMEMU_UNFINISHED | child->id;
	(void)leave(m, 0);
	return rc;
}

int vmemu_space_fork_on(vmemu_machine *m, uint32_t space, uint32_t child, int mode)
{
	struct space *s = enter_space(m, space), *c;

	if (!s)
		return -EBADF;
	c = child < m->vm.capacity ? m->vm.spaces[child] : NULL;
	if (!c || c->parent != s->birth || (mode != VMEMU_FORK_EAGER && mode != VMEMU_FORK_COW))
		return leave(m, -EINVAL);
	return leave(m, fork_more(&m->vm, s, c, mode, FORK_SLICE));
}

int64_t vmemu_space_end(vmemu_machine *m, uint32_t space, uint64_t *faults)
{
	struct space *s = enter_space(m, space);
	int64_t left;
	int had = 0;

	if (!s)
		return -EBADF;
	for (int kind = 0; kind < VMEMU_NKINDS; kind++)
		had |= s->faults[kind] != 0;
	if (had)
		memcpy(faults, s->faults, sizeof(s->faults));
	space_free(&m->vm, s);
	objects_reap(&m->vm.objects);
	left = m->vm.objects.count;
	(void)leave(m, 0);
	return left << 1 | had;
}

int vmemu_space_end_many(vmemu_machine *m, const uint32_t *spaces, uint32_t n, uint64_t *minor, uint64_t *major)
{
	struct vm *vm = &m->vm;

	enter(m);
	for (uint32_t i = 0; i < n; i++)
		if (!spaces[i] || spaces[i] >= vm->capacity || !vm->spaces[spaces[i]])
			return leave(m, -EBADF);
	for (uint32_t i = 0; i < n; i++) {
		struct space *s = vm->spaces[spaces[i]];

		minor[i] = major[i] = 0;
		if (!s) /* the second time */
			continue;
		major[i] = s->faults[VMEMU_FILE_MAJOR] + s->faults[VMEMU_SWAP_IN];
		for (int kind = VMEMU_NONE + 1; kind < VMEMU_SEGV_MAPERR; kind++)
			minor[i] += s->faults[kind];
		minor[i] -= major[i];
		space_free(vm, s);
	}
	return leave(m, 0);
}

int vmemu_space_survey(vmemu_machine *m, uint32_t space, struct vmemu_survey *out)
{
	struct space *s = enter_space(m, space);

	if (!s)
		return -EBADF;
	out->sums = *vmas_sums(&s->vmas);
	memcpy(out->words, s->words, sizeof(out->words));
	return leave(m, 0);
}

static int bounded(const struct space *s, uint64_t pages, uint64_t flags, uint64_t nvmas, uint64_t total, uint64_t data)
{
	const uint64_t kinds = VMEMU_VM_WRITE | VMEMU_VM_SHARED | VMEMU_VM_GROWSDOWN;
	const sums_t *sums = vmas_sums(&s->vmas);

	for (int word = VMEMU_NWORDS_INHERITED; word < VMEMU_NWORDS; word++)
		if (s->words[word])
			return 0;
	return sums->nvmas <= nvmas && sums->total + pages <= total &&
	       ((flags & kinds) != VMEMU_VM_WRITE || sums->data + pages <= data);
}

int64_t vmemu_space_map_plain(vmemu_machine *m, uint32_t space, uint64_t length, uint64_t flags, uint32_t base,
			      uint64_t nvmas, uint64_t total, uint64_t data)
{
	const uint64_t other = VMEMU_VM_SHARED | VMEMU_VM_MAYSHARE | VMEMU_VM_HUGETLB | VMEMU_VM_GIANT |
			       VMEMU_VM_POOL_OWNER | VMEMU_VM_POOL_UNMAPPED;
	struct space *s = enter_space(m, space);
	struct vmemu_vma v = { .flags = flags };
	int rc;

	if (!s)
		return -EBADF;
	if (!length || length & PAGE_MASK || length > TASK_SIZE || base >= VMEMU_NWORDS || flags & other)
		return leave(m, -EINVAL);
	if (!bounded(s, length >> PAGE_SHIFT, flags, nvmas, total, data) || s->words[base] > TASK_SIZE ||
	    vmas_hole(&s->vmas, PAGE_BYTES, s->words[base], length, PAGE_BYTES, 1, &v.start))
		return leave(m, -EAGAIN);
	v.end = v.start + length;
	v.pgoff = v.start >> PAGE_SHIFT;
	rc = leave(m, space_map(&m->vm, s, &v, 0));
	return rc ? rc : (int64_t)v.start;
}

int vmemu_space_unmap_plain(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end)
{
	struct space *s = enter_space(m, space);
	struct vma_pos pos;

	if (!s)
		return -EBADF;
	if (bad_range(start, end))
		return leave(m, -EINVAL);
	for (const vma_t *v = vmas_find(&s->vmas, start, &pos); v && v->start < end; v = vmas_next(&s->vmas, &pos))
		if (v->flags & VMEMU_VM_SEALED || (v->start < start && v->end > end))
			return leave(m, -EAGAIN);
	return leave(m, space_unmap(&m->vm, s, start, end));
}
