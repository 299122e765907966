/* The door's own header: a machine is a vm and its lock. Included by the api files only.
 *
 * Every function of vmemu_cdef.h checks its arguments, takes the lock, delegates, lets go of what nobody needs any more,
 * and gives the lock back. Nothing below knows of the lock.
 */
#ifndef VMEMU_API_H
#define VMEMU_API_H

#include <pthread.h>

#include "mm.h"

struct vmemu_machine {
	pthread_mutex_t lock;
	struct vm vm;
};

static inline void enter(vmemu_machine *m)
{
	(void)pthread_mutex_lock(&m->lock);
	m->vm.frames.payer = m->vm.frames.refused = 0;
}

/* What a call that fails with -ENOMEM returns. */
static inline int want_of(const vmemu_machine *m, int rc)
{
	uint32_t refused = m->vm.frames.refused;

	if (rc != -ENOMEM || !refused)
		return rc;
	return -VMEMU_NO_FRAME - (refused == NO_FRAME_LEFT ? 0 : (int)refused);
}

static inline int leave(vmemu_machine *m, int rc)
{
	rc = want_of(m, rc);
	objects_reap(&m->vm.objects);
	frames_settle(&m->vm.frames);
	(void)pthread_mutex_unlock(&m->lock);
	return rc;
}

/* Takes the lock and finds the space; without one the lock is given back and NULL returned. */
static inline struct space *enter_space(vmemu_machine *m, uint32_t id)
{
	struct space *s;

	enter(m);
	s = id && id < m->vm.capacity ? m->vm.spaces[id] : NULL;
	if (s) {
		m->vm.frames.space = s->birth;
		m->vm.frames.payer = s->cgroup;
		space_stale(&m->vm, s);
	} else {
		(void)leave(m, 0);
	}
	return s;
}

static inline int bad_range(uint64_t start, uint64_t end)
{
	return (start | end) & PAGE_MASK || start >= end || end > TASK_SIZE;
}

#endif
