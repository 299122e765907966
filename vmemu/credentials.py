"""Who a process is, credentials(7) and capabilities(7): an immutable record, and what each system call makes of it.

Processes share a record until one of them changes its own. The functions are pure: they take a record and give the new
one, or raise as the system call would; keeping it is the caller's business.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from enum import IntEnum

from vmemu.errors import syscall_error

__all__ = ["ALL_CAPABILITIES", "Capability", "Credentials", "setfs", "setgroups", "setid", "setre", "setres"]

_SAME = 0xFFFF_FFFF
"""(uid_t)-1: leave this id as it is."""


class Capability(IntEnum):
    """The capabilities that some call here asks for, by bit."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    IPC_LOCK = 14
    SYS_RAWIO = 17
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYS_RESOURCE = 24
    MKNOD = 27
    MAC_OVERRIDE = 32


ALL_CAPABILITIES = (1 << 41) - 1
"""CAP_LAST_CAP is CAP_CHECKPOINT_RESTORE, 40."""
_FS_CAPABILITIES = sum(1 << bit for bit in (0, 1, 2, 3, 4, 27, 32, 9))
"""What follows fsuid (CAP_FS_MASK and CAP_LINUX_IMMUTABLE)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Ids of user and groups, and capability sets as bit masks. The default is root with everything."""

    uid: int = 0
    euid: int = 0
    suid: int = 0
    fsuid: int = 0
    gid: int = 0
    egid: int = 0
    sgid: int = 0
    fsgid: int = 0
    groups: tuple[int, ...] = ()
    inheritable: int = 0
    permitted: int = ALL_CAPABILITIES
    effective: int = ALL_CAPABILITIES
    bounding: int = ALL_CAPABILITIES
    ambient: int = 0

    def capable(self, capability: Capability) -> bool:
        """It is in the effective set."""
        return bool(self.effective >> capability & 1)

    def with_capabilities(self, effective: int, permitted: int, inheritable: int) -> Credentials:
        """The same with other sets; ambient stays within the new ones."""
        return replace(
            self,
            effective=effective,
            permitted=permitted,
            inheritable=inheritable,
            ambient=self.ambient & permitted & inheritable,
        )

    def after_exec(self, euid: int, egid: int) -> Credentials:
        """Those of a program executed with these effective ids, which set-ID bits may have changed; no capabilities
        are on its file (cap_bprm_creds_from_file())."""
        ambient = self.ambient if (euid, egid) == (self.uid, self.gid) else 0
        permitted = ambient
        if 0 in (self.uid, euid):  # as if the file had them all
            permitted |= self.bounding | self.inheritable
        effective = permitted if euid == 0 else ambient
        ids = (self.euid, self.suid, self.fsuid, self.egid, self.sgid, self.fsgid)
        sets = (self.permitted, self.effective, self.ambient)
        if ids == (euid, euid, euid, egid, egid, egid) and sets == (permitted, effective, ambient):
            return self
        return replace(
            self,
            euid=euid,
            suid=euid,
            fsuid=euid,
            egid=egid,
            sgid=egid,
            fsgid=egid,
            permitted=permitted,
            effective=effective,
            ambient=ambient,
        )


def _uids(old: Credentials, real: int, effective_id: int, saved: int) -> Credentials:
    """New user ids, and what becomes of the capabilities (cap_emulate_setxuid())."""
    new = replace(old, uid=real, euid=effective_id, suid=saved, fsuid=effective_id)
    permitted, effective, ambient = old.permitted, old.effective, old.ambient
    if 0 in (old.uid, old.euid, old.suid) and 0 not in (new.uid, new.euid, new.suid):
        permitted = effective = ambient = 0
    if old.euid == 0 != new.euid:
        effective = 0
    if old.euid != 0 == new.euid:
        effective = permitted
    return replace(new, permitted=permitted, effective=effective, ambient=ambient)


def _privilege(group: bool) -> Capability:
    return Capability.SETGID if group else Capability.SETUID


def _ids(old: Credentials, group: bool) -> tuple[int, int, int]:
    return (old.gid, old.egid, old.sgid) if group else (old.uid, old.euid, old.suid)


def _with(old: Credentials, group: bool, real: int, effective: int, saved: int) -> Credentials:
    if group:
        return replace(old, gid=real, egid=effective, sgid=saved, fsgid=effective)
    return _uids(old, real, effective, saved)


def _check(call: str, *ids: int) -> None:
    for one in ids:
        if not 0 <= one < _SAME:
            raise syscall_error(call, errno.EINVAL, f"{one} is no id")


def _refuse(call: str, to: int) -> Exception:
    return syscall_error(call, errno.EPERM, f"id {to} is none of its own")


def setid(old: Credentials, to: int, group: bool) -> Credentials:
    """setuid(2), or setgid(2) with *group*."""
    call = "setgid" if group else "setuid"
    _check(call, to)
    real, _, saved = _ids(old, group)
    if old.capable(_privilege(group)):
        return _with(old, group, to, to, to)
    if to not in (real, saved):
        raise _refuse(call, to)
    return _with(old, group, real, to, saved)


def setre(old: Credentials, real: int, effective: int, group: bool) -> Credentials:
    """setreuid(2), or setregid(2) with *group*; -1 leaves an id as it is."""
    call = "setregid" if group else "setreuid"
    had_real, had_effective, saved = _ids(old, group)
    able = old.capable(_privilege(group))
    new_real, new_effective = _default(call, (real, had_real), (effective, had_effective))
    if not able and new_real not in (had_real, had_effective):
        raise _refuse(call, new_real)
    if not able and new_effective not in (had_real, had_effective, saved):
        raise _refuse(call, new_effective)
    if not _left(real) or (not _left(effective) and new_effective != had_real):
        saved = new_effective
    return _with(old, group, new_real, new_effective, saved)


def setres(old: Credentials, real: int, effective: int, saved: int, group: bool) -> Credentials:
    """setresuid(2), or setresgid(2) with *group*; -1 leaves an id as it is."""
    call = "setresgid" if group else "setresuid"
    had = _ids(old, group)
    new = _default(call, *zip((real, effective, saved), had, strict=True))
    if not old.capable(_privilege(group)):
        for one in new:
            if one not in had:
                raise _refuse(call, one)
    return _with(old, group, *new)


def setfs(old: Credentials, to: int, group: bool) -> Credentials:
    """setfsuid(2), or setfsgid(2) with *group*, which never fail: what is not allowed changes nothing."""
    known = (*_ids(old, group), old.fsgid if group else old.fsuid)
    if not 0 <= to < _SAME or not (to in known or old.capable(_privilege(group))):
        return old
    if group:
        return replace(old, fsgid=to)
    effective = old.effective
    if old.fsuid == 0 != to:
        effective &= ~_FS_CAPABILITIES
    if old.fsuid != 0 == to:
        effective |= old.permitted & _FS_CAPABILITIES
    return replace(old, fsuid=to, effective=effective)


def setgroups(old: Credentials, groups: tuple[int, ...]) -> Credentials:
    """setgroups(2)."""
    if not old.capable(Capability.SETGID):
        raise syscall_error("setgroups", errno.EPERM, "CAP_SETGID is missing")
    if len(groups) > 65536:
        raise syscall_error("setgroups", errno.EINVAL, f"{len(groups)} groups")
    _check("setgroups", *groups)
    return replace(old, groups=tuple(sorted(groups)))


def _left(given: int) -> bool:
    return given in (-1, _SAME)


def _default(call: str, *pairs: tuple[int, int]) -> list[int]:
    """Of each (given, had) what is meant."""
    new = [had if _left(given) else given for given, had in pairs]
    _check(call, *new)
    return new
