/* Door: what is called most often, in forms that are cheap to call from Python. See api.h. */
#include "access.h"
#include "api.h"

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
