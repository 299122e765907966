/* Door: swap and reclaim. See api.h. */
#include "api.h"
#include "lru.h"
#include "reclaim.h"
#include "swap.h"

int vmemu_swap_on(vmemu_machine *m, uint32_t n)
{
	enter(m);
	if (m->vm.frames.swap.nslots)
		return leave(m, -EBUSY);
	return leave(m, !n || n == UINT32_MAX ? -EINVAL : swap_on(&m->vm.frames, n));
}

int vmemu_swap_info(vmemu_machine *m, struct vmemu_swap *out)
{
	const struct swap *s = &m->vm.frames.swap;

	enter(m);
	out->total = s->nslots;
	out->free = s->nslots - s->used;
	out->cached = s->cached;
	memcpy(out->counts, m->vm.reclaim.counts, sizeof(out->counts));
	out->counts[VMEMU_RC_SWPIN] = s->ins;
	return leave(m, 0);
}

int vmemu_swap_lend(vmemu_machine *m, void *memory, int fd)
{
	struct swap *s = &m->vm.frames.swap;

	enter(m);
	if (!s->nslots)
		return leave(m, -EINVAL);
	s->memory = memory;
	s->fd = memory ? -1 : fd;
	return leave(m, 0);
}

int vmemu_swap_write(vmemu_machine *m, struct vmemu_victim *victims, uint32_t n)
{
	struct frames *f = &m->vm.frames;
	pfn_t *pfns;
	uint32_t k = 0;
	int rc = 0;

	enter(m);
	pfns = host_zalloc(&m->vm.host, n * sizeof(*pfns));
	if (!pfns)
		return leave(m, -ENOMEM);
	for (uint32_t i = 0; i < n; i++)
		if (victims[i].slot && f->swap.nslots && victims[i].pfn < f->nframes &&
		    f->swap.slot[victims[i].pfn] == victims[i].slot)
			pfns[k++] = victims[i].pfn;
	for (uint32_t i = 0; i < k && rc >= 0; i += (uint32_t)rc)
		rc = swap_write(f, pfns + i, k - i);
	for (uint32_t i = 0; i < n && rc >= 0; i++)
		victims[i].written |= victims[i].slot != 0;
	host_free(&m->vm.host, pfns, n * sizeof(*pfns));
	return leave(m, rc < 0 ? rc : 0);
}

int vmemu_swap_fill(vmemu_machine *m, uint32_t slot, const void *data)
{
	struct frames *f = &m->vm.frames;
	pfn_t pfn;
	int rc;

	enter(m);
	if (!slot || slot > f->swap.nslots || (f->contents && !data))
		return leave(m, -EINVAL);
	if (!f->swap.count[slot] || swap_find(f, slot) != NO_PFN)
		return leave(m, 0);
	rc = swap_bring_cached(f, slot, data, &pfn);
	return leave(m, rc);
}

/* Takes the lock and finds the object; without one the lock is given back and NULL returned. */
static struct object *enter_object(vmemu_machine *m, uint32_t id)
{
	struct object *obj;

	enter(m);
	obj = object_get(&m->vm.objects, id);
	if (!obj)
		(void)leave(m, 0);
	return obj;
}

int64_t vmemu_object_slot(vmemu_machine *m, uint32_t object, uint64_t index)
{
	struct object *obj = enter_object(m, object);
	uint32_t slot;

	if (!obj)
		return -EBADF;
	slot = object_slot(obj, index);
	if (slot && object_find(&m->vm.objects, obj, index) != NO_PFN)
		slot = 0;
	(void)leave(m, 0);
	return slot;
}

int vmemu_object_swap_fill(vmemu_machine *m, uint32_t object, uint64_t index, const void *data, int major)
{
	struct object *obj = enter_object(m, object);
	pfn_t pfn;
	int rc;

	if (!obj)
		return -EBADF;
	if (m->vm.frames.contents && !data)
		return leave(m, -EINVAL);
	if (!object_slot(obj, index) || object_find(&m->vm.objects, obj, index) != NO_PFN)
		return leave(m, 0);
	rc = swap_bring(&m->vm.frames, object_slot(obj, index), FRAME_SHMEM | (major ? FRAME_MAJOR : 0), data, &pfn);
	if (!rc)
		object_swap_in(&m->vm.objects, obj, index, pfn);
	return leave(m, rc);
}

int vmemu_machine_policy(vmemu_machine *m, uint32_t policy, uint64_t seed)
{
	enter(m);
	return leave(m, reclaim_set_policy(&m->vm, policy, seed));
}

int64_t vmemu_machine_free_frames(vmemu_machine *m)
{
	int64_t n;

	enter(m);
	n = (int64_t)m->vm.frames.free;
	(void)leave(m, 0);
	return n;
}

int vmemu_machine_watermark(vmemu_machine *m, uint64_t low)
{
	struct reclaim_state *s = &m->vm.reclaim;

	enter(m);
	s->low = low;
	s->stalled = m->vm.events[VMEMU_EV_PGFREE] - STALL_FREED;
	s->floor = 0;
	return leave(m, 0);
}

int vmemu_machine_stalled(vmemu_machine *m)
{
	struct reclaim_state *s = &m->vm.reclaim;

	enter(m);
	s->stalled = m->vm.events[VMEMU_EV_PGFREE];
	s->floor = m->vm.frames.free / 2;
	return leave(m, 0);
}

int vmemu_machine_reclaim(vmemu_machine *m, const struct vmemu_reclaim *what, struct vmemu_victim *out, uint32_t cap,
			  uint64_t *done)
{
	uint64_t freed;
	uint32_t n = 0;
	int rc;

	enter(m);
	if (what->swappiness > 200 || cap > INT32_MAX)
		return leave(m, -EINVAL);
	freed = m->vm.events[VMEMU_EV_PGFREE];
	lru_drain(&m->vm);
	rc = reclaim_run(&m->vm, what, out, cap, &n);
	if (!rc)
		*done = m->vm.events[VMEMU_EV_PGFREE] - freed;
	return leave(m, rc ? rc : (int)n);
}

int vmemu_machine_reclaimed(vmemu_machine *m, const struct vmemu_victim *victims, uint32_t n)
{
	enter(m);
	for (uint32_t i = 0; i < n; i++)
		if (victims[i].pfn >= m->vm.frames.nframes || victims[i].slot > m->vm.frames.swap.nslots)
			return leave(m, -EINVAL);
	return leave(m, (int)reclaim_finish(&m->vm, victims, n));
}

int vmemu_space_swap_out(vmemu_machine *m, uint32_t space, uint64_t start, uint64_t end, struct vmemu_victim *out,
			 uint32_t cap)
{
	struct space *s = enter_space(m, space);
	struct vma_pos pos;
	const vma_t *v;
	uint32_t n = 0;
	int rc;

	if (!s)
		return -EBADF;
	v = bad_range(start, end) ? NULL : vmas_find(&s->vmas, start, &pos);
	if (!v || v->start > start || v->end < end || cap > INT32_MAX)
		return leave(m, -EINVAL);
	rc = lru_swap_out(&m->vm, s, start, end, out, cap, &n);
	return leave(m, rc ? rc : (int)n);
}
