"""Every system call that a program may make is known to the runtime's marks, either way."""

import re
from importlib import resources

# They write nothing into the program's memory, or memory.c marks what they write.
FILL_NOTHING_NAMES = """
mmap munmap mremap mprotect madvise brk msync mlock mlock2 munlock mlockall munlockall mincore
membarrier open openat creat close dup dup2 dup3 lseek flock close_range chdir fchdir write writev
pwrite64 pwritev pwritev2 ftruncate fsync fdatasync fchmod fchown fadvise64 fallocate
sync_file_range readahead sync access faccessat faccessat2 chmod fchmodat chown lchown fchownat
mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
truncate utimensat umask eventfd eventfd2 epoll_create epoll_create1 epoll_ctl timerfd_create
signalfd signalfd4 shutdown setsockopt sendto sendmsg socket inotify_init inotify_init1
memfd_create pidfd_open inotify_add_watch inotify_rm_watch bind listen connect rt_sigsuspend
rt_sigreturn pause kill tkill tgkill alarm exit_group exit getpid gettid getppid set_tid_address
set_robust_list setrlimit rseq getuid geteuid getgid getegid getpgid getpgrp getsid sched_yield
sched_get_priority_max sched_get_priority_min sched_setaffinity sched_getscheduler
sched_setscheduler clone3
"""
FILL_NOTHING = frozenset(FILL_NOTHING_NAMES.split())


def test_every_call_is_classified() -> None:
    runtime = resources.files("optmigd.enclave_shim.runtime")
    dispatch = (runtime / "dispatch.c").read_text()
    table = dispatch[dispatch.index("call_fn table[]") : dispatch.index("table_calls[]")]
    known = set(re.findall(r"\b(?:OWN|FD|PATH|HOLDS|ZERO|QUIET|FORWARD)\((\w+)\)", table))
    known |= set(re.findall(r"\[__NR_(\w+)\]", table))
    marks = (runtime / "marks.c").read_text()
    outputs = marks[marks.index("outputs[][OUTPUTS]") : marks.index("static u64 argument")]
    filled = set(re.findall(r"\b(?:ONE|TWO|TIMES)\((\w+),", outputs))
    filled |= set(re.findall(r"\[__NR_(\w+)\]", outputs))
    assert len(known) > 150
    assert known - filled - FILL_NOTHING == set()
    assert filled & FILL_NOTHING == set()
