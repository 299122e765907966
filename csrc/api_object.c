/* Door: memory objects. See api.h. */
#include "api.h"
#include "fault.h"
#include "space.h"

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

/* An object of a pool has whole huge pages of shared memory, and reserves only what is free. */
static int bad_pool_object(const vmemu_machine *m, uint32_t kind, uint64_t size)
{
	int giant = (kind & VMEMU_OBJ_GIANT) != 0;
	uint64_t page = (uint64_t)HUGE_PAGES(giant) << PAGE_SHIFT;

	if (!(kind & VMEMU_OBJ_HUGETLB))
		return kind & (VMEMU_OBJ_GIANT | VMEMU_OBJ_RESERVE);
	if (!(kind & VMEMU_OBJ_SHMEM) || kind & VMEMU_OBJ_ACCOUNT || size & (page - 1))
		return 1;
	return kind & VMEMU_OBJ_RESERVE &&
	       m->vm.frames.pools[giant].free < fault_pool_reserved(&m->vm, giant) + size / page;
}

int vmemu_object_new(vmemu_machine *m, uint32_t kind, uint64_t size, uint32_t *object)
{
	const uint32_t base = kind & (VMEMU_OBJ_SHMEM | VMEMU_OBJ_FILE);

	enter(m);
	if ((base != VMEMU_OBJ_SHMEM && base != VMEMU_OBJ_FILE) || size > INT64_MAX || bad_pool_object(m, kind, size))
		return leave(m, -EINVAL);
	return leave(m, object_new(&m->vm.objects, kind, size, object));
}

int64_t vmemu_machine_objects(vmemu_machine *m, uint32_t *out, uint32_t *held, uint64_t cap)
{
	const struct objects *o = &m->vm.objects;
	uint64_t n = 0;

	enter(m);
	for (uint32_t id = 1; id < o->capacity; id++) {
		const struct object *obj = object_get(o, id);

		if (!obj)
			continue;
		if (n < cap) {
			out[n] = id;
			held[n] = obj->held;
		}
		n++;
	}
	(void)leave(m, 0);
	return (int64_t)n;
}

int vmemu_object_hold(vmemu_machine *m, uint32_t object)
{
	struct object *obj = enter_object(m, object);

	if (!obj)
		return -EBADF;
	obj->held++;
	return leave(m, 0);
}

int vmemu_object_release(vmemu_machine *m, uint32_t object)
{
	const struct object *obj = enter_object(m, object);

	if (!obj)
		return -EBADF;
	if (!obj->held)
		return leave(m, -EINVAL);
	object_release(&m->vm.objects, object);
	return leave(m, 0);
}

int vmemu_object_info(vmemu_machine *m, uint32_t object, struct vmemu_object_info *out)
{
	const struct object *obj = enter_object(m, object);

	if (!obj)
		return -EBADF;
	out->size = obj->size;
	out->nframes = obj->nframes;
	out->kind = obj->kind;
	out->nvmas = m->vm.env.users.of[object].count;
	return leave(m, 0);
}

/* The bytes of page `index` from data that begins with page `first`. */
static int fill_page(struct vm *vm, struct object *obj, uint64_t index, uint64_t first, const uint8_t *data,
		     uint64_t length, uint32_t flags)
{
	uint64_t at = (index - first) << PAGE_SHIFT, n = at < length ? min_u64(PAGE_BYTES, length - at) : 0;
	pfn_t pfn;
	int rc;

	if (object_lookup(obj, index) != NO_PFN || object_slot(obj, index))
		return 0;
	rc = object_add(&vm->objects, obj, index, &pfn);
	if (rc)
		return rc;
	if (n && vm->frames.contents)
		memcpy(frame_bytes(&vm->frames, pfn), data + at, n);
	frame_of(&vm->frames, pfn)->flags |= (uint16_t)flags;
	return 0;
}

int vmemu_object_fill(vmemu_machine *m, uint32_t object, uint64_t index, uint64_t npages, const void *data,
		      uint64_t length, uint64_t major, uint32_t cgroup)
{
	struct object *obj = enter_object(m, object);
	uint64_t end;
	int rc = 0;

	if (!obj)
		return -EBADF;
	if (obj->kind & VMEMU_OBJ_HUGETLB)
		return leave(m, -EINVAL);
	if (index >> 52 || npages >> 52)
		return leave(m, -EINVAL);
	if (cgroup_get(&m->vm.frames.cgroups, cgroup))
		m->vm.frames.payer = cgroup;
	end = min_u64(index + npages, object_pages(obj));
	if (major >= index && major < end) /* the page that is needed before those that may help */
		rc = fill_page(&m->vm, obj, major, index, data, length, FRAME_MAJOR);
	if (rc)
		return leave(m, rc);
	for (uint64_t i = index; i < end && !rc; i++)
		rc = fill_page(&m->vm, obj, i, index, data, length, 0);
	return leave(m, major == UINT64_MAX ? rc : 0);
}

/* A page that is not in memory has bytes all the same: in the file, or on the swap device. */
static int is_elsewhere(const struct object *obj, uint64_t index)
{
	return obj->kind & VMEMU_OBJ_FILE || object_slot(obj, index);
}

int64_t vmemu_object_read(vmemu_machine *m, uint32_t object, uint64_t offset, void *buffer, uint64_t length)
{
	struct object *obj = enter_object(m, object);
	uint8_t *to = buffer;
	uint64_t done = 0, n;

	if (!obj)
		return -EBADF;
	if (obj->kind & VMEMU_OBJ_HUGETLB)
		return leave(m, -EINVAL);
	length = offset < obj->size ? min_u64(length, obj->size - offset) : 0;
	for (; done < length; done += n) {
		pfn_t pfn = object_find(&m->vm.objects, obj, (offset + done) >> PAGE_SHIFT);
		uint64_t in = (offset + done) & PAGE_MASK;

		n = min_u64(PAGE_BYTES - in, length - done);
		if (pfn == NO_PFN && is_elsewhere(obj, (offset + done) >> PAGE_SHIFT))
			break;
		if (pfn != NO_PFN)
			frame_stamp(&m->vm.frames, pfn);
		if (pfn == NO_PFN || !m->vm.frames.contents)
			memset(to + done, 0, n);
		else
			memcpy(to + done, frame_bytes(&m->vm.frames, pfn) + in, n);
	}
	(void)leave(m, 0);
	return (int64_t)done;
}

int64_t vmemu_object_write(vmemu_machine *m, uint32_t object, uint64_t offset, const void *buffer, uint64_t length)
{
	struct object *obj = enter_object(m, object);
	const uint8_t *from = buffer;
	uint64_t done = 0, n;
	int rc = 0;

	if (!obj)
		return -EBADF;
	if (obj->kind & VMEMU_OBJ_HUGETLB)
		return leave(m, -EINVAL);
	length = offset < obj->size ? min_u64(length, obj->size - offset) : 0;
	for (; done < length; done += n) {
		uint64_t index = (offset + done) >> PAGE_SHIFT, in = (offset + done) & PAGE_MASK;
		pfn_t pfn = object_find(&m->vm.objects, obj, index);

		n = min_u64(PAGE_BYTES - in, length - done);
		if (pfn == NO_PFN) {
			if (is_elsewhere(obj, index))
				break;
			rc = object_add(&m->vm.objects, obj, index, &pfn);
			if (rc)
				break;
		}
		frame_stamp(&m->vm.frames, pfn);
		if (m->vm.frames.contents)
			memcpy(frame_bytes(&m->vm.frames, pfn) + in, from + done, n);
		frame_of(&m->vm.frames, pfn)->flags |= FRAME_DIRTY;
	}
	if (rc && !done)
		return leave(m, rc);
	(void)leave(m, 0);
	return (int64_t)done;
}

/* Nothing if the last page is full or not in the cache. */
static void clear_tail(struct vm *vm, struct object *obj, int written)
{
	uint64_t used = obj->size & PAGE_MASK;
	pfn_t pfn = used ? object_find(&vm->objects, obj, obj->size >> PAGE_SHIFT) : NO_PFN;

	if (pfn == NO_PFN)
		return;
	if (written)
		frame_of(&vm->frames, pfn)->flags |= FRAME_DIRTY;
	if (vm->frames.contents)
		memset(frame_bytes(&vm->frames, pfn) + used, 0, PAGE_BYTES - used);
}

int vmemu_object_clear_tail(vmemu_machine *m, uint32_t object, int written)
{
	struct object *obj = enter_object(m, object);

	if (!obj)
		return -EBADF;
	clear_tail(&m->vm, obj, written);
	return leave(m, 0);
}

int vmemu_object_resize(vmemu_machine *m, uint32_t object, uint64_t size)
{
	struct object *obj = enter_object(m, object);
	uint64_t old;

	if (!obj)
		return -EBADF;
	if (obj->kind & VMEMU_OBJ_HUGETLB)
		return leave(m, -EINVAL);
	if (size > INT64_MAX)
		return leave(m, -EINVAL);
	old = obj->size;
	m->vm.env.account -= object_charge(obj);
	obj->size = size;
	m->vm.env.account += object_charge(obj);
	if (size < old) { /* truncate_pagecache(): mappings, copies included, then the cache */
		space_unmap_object(&m->vm, object, object_pages(obj), UINT64_MAX, 1);
		object_drop(&m->vm.objects, obj, object_pages(obj), UINT64_MAX);
		clear_tail(&m->vm, obj, (obj->kind & VMEMU_OBJ_FILE) == 0); /* shmem_undo_range() marks it dirty */
	}
	return leave(m, 0);
}

int vmemu_object_punch(vmemu_machine *m, uint32_t object, uint64_t first, uint64_t npages)
{
	struct object *obj = enter_object(m, object);

	if (!obj)
		return -EBADF;
	if (obj->kind & VMEMU_OBJ_HUGETLB)
		return leave(m, -EINVAL);
	if (first >> 52 || npages >> 52)
		return leave(m, -EINVAL);
	space_unmap_object(&m->vm, object, first, first + npages, 0);
	object_drop(&m->vm.objects, obj, first, first + npages);
	return leave(m, 0);
}
