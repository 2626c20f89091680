"""The system calls that what Bedstone runs may make: a list; whatever is not in it is refused.

One list for processes and for boxes. Left out on purpose, though programs ask for them: `ptrace`
and `process_vm_*` (other processes' memory), `keyctl` and the like (keys are not part of any
namespace), `bpf`, `perf_event_open`, `userfaultfd`, `io_uring_*` (the most used ways into the
kernel), everything about mounts, modules, clocks and namespaces.

The numbers are those of the kernel's arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h, of which a call is never renumbered. From 424 on, all
architectures have the same. A number in the text is the next name's; the names after it follow.
"""

from __future__ import annotations

from typing import Final

_ALLOWED: Final = """
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod
    chown chown32 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
    fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
    fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
    futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
    getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area
    gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
    listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64
    madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod
    mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap
    mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep
    newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
    pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2
    prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead
    readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr
    sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
    set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
    sigreturn socketpair splice stat stat64 statfs statfs64 statmount statx symlink
    symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate
    truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64
    utimes vfork vmsplice wait4 waitid waitpid write writev
"""
ALLOWED: Final = tuple(_ALLOWED.split())

CLONE_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET; `clone` without them is
allowed. `clone3` keeps its flags in memory where no filter can read them: it is said not to be
there, and libraries fall back to `clone`."""
FAMILIES: Final = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. AF_VSOCK (40) leads to the hypervisor, AF_ALG (38) and
AF_PACKET (17) to drivers."""
PERSONALITIES: Final = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
SET_ID: Final = 0o6000
"""S_ISUID and S_ISGID, by which a file lends its owner's rights to whoever runs it."""
MODES: Final = {
    "chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2,
}  # fmt: skip
"""The calls that give a file a mode, by the number of that argument; a folder that is made takes no
such bits from its mode. `openat2` has its own in memory, as `clone3` has its flags."""
OPENS: Final = {"open": (1, 2), "openat": (2, 3)}
"""Those that do it if their flags, the first number, say that the file is made."""
CREATING: Final = 0o20000100
"""O_CREAT, and of O_TMPFILE the bit that is its own."""
NEWEST: Final = 467
"""The last call when this list was made; the newer ones are refused as if they were not there."""

_X86_64: Final = """
    0 read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction
    rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select
    sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep
    getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg
    recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt clone
    fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv
    msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd chdir fchdir rename
    mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown lchown umask
    gettimeofday getrlimit getrusage sysinfo times 102 getuid 104 getgid setuid setgid geteuid
    getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid
    getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending
    rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod 135 personality 137
    statfs fstatfs 140 getpriority setpriority sched_setparam sched_getparam sched_setscheduler
    sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock
    munlock mlockall munlockall 157 prctl arch_prctl adjtimex setrlimit 162 sync 186 gettid
    readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
    flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity
    sched_getaffinity set_thread_area io_setup io_destroy io_getevents io_submit io_cancel
    get_thread_area 213 epoll_create epoll_ctl_old epoll_wait_old remap_file_pages getdents64
    set_tid_address restart_syscall semtimedop fadvise64 timer_create timer_settime
    timer_gettime timer_getoverrun timer_delete 228 clock_gettime clock_getres clock_nanosleep
    exit_group epoll_wait epoll_ctl tgkill utimes 240 mq_open mq_unlink mq_timedsend
    mq_timedreceive mq_notify mq_getsetattr 247 waitid 251 ioprio_set ioprio_get inotify_init
    inotify_add_watch inotify_rm_watch 257 openat mkdirat mknodat fchownat futimesat newfstatat
    unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll 273
    set_robust_list get_robust_list splice tee sync_file_range vmsplice 280 utimensat
    epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime
    accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev
    rt_tgsigqueueinfo 299 recvmmsg 301 fanotify_mark prlimit64 name_to_handle_at 306 syncfs
    sendmmsg 309 getcpu 314 sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create
    322 execveat 324 membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc
    pkey_free statx io_pgetevents rseq uretprobe
"""
_GENERIC: Final = """
    0 io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr
    lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
    getcwd 19 eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 fcntl inotify_init1
    inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get flock mknodat mkdirat
    unlinkat symlinkat linkat renameat 43 statfs fstatfs truncate ftruncate fallocate faccessat
    chdir fchdir 52 fchmod fchmodat fchownat fchown openat close 59 pipe2 61 getdents64 lseek
    read write readv writev pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4
    vmsplice splice tee readlinkat newfstatat fstat sync fsync fdatasync sync_file_range
    timerfd_create timerfd_settime timerfd_gettime utimensat 90 capget capset personality exit
    exit_group waitid set_tid_address 98 futex set_robust_list get_robust_list nanosleep
    getitimer setitimer 107 timer_create timer_gettime timer_getoverrun timer_settime
    timer_delete 113 clock_gettime clock_getres clock_nanosleep 118 sched_setparam
    sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity sched_getaffinity
    sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval
    restart_syscall kill tkill tgkill sigaltstack rt_sigsuspend rt_sigaction rt_sigprocmask
    rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn setpriority getpriority 143
    setregid setgid setreuid setuid setresuid getresuid setresgid getresgid setfsuid setfsgid
    times setpgid getpgid getsid setsid getgroups setgroups uname 163 getrlimit setrlimit
    getrusage umask prctl getcpu gettimeofday 171 adjtimex getpid getppid getuid geteuid getgid
    getegid gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
    mq_getsetattr msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat
    shmdt socket socketpair bind listen accept connect getsockname getpeername sendto recvfrom
    setsockopt getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap 220 clone execve
    mmap fadvise64 226 mprotect msync mlock munlock mlockall munlockall mincore madvise
    remap_file_pages 240 rt_tgsigqueueinfo 242 accept4 recvmmsg 260 wait4 prlimit64 263
    fanotify_mark name_to_handle_at 267 syncfs 269 sendmmsg 274 sched_setattr sched_getattr
    renameat2 seccomp getrandom memfd_create 281 execveat 283 membarrier mlock2 copy_file_range
    preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx io_pgetevents rseq
"""
_NEWER: Final = """
    424 pidfd_send_signal 434 pidfd_open clone3 close_range openat2 439 faccessat2 441
    epoll_pwait2 444 landlock_create_ruleset landlock_add_rule landlock_restrict_self
    memfd_secret process_mrelease futex_waitv 451 cachestat fchmodat2 map_shadow_stack
    futex_wake futex_wait futex_requeue statmount listmount 462 mseal setxattrat getxattrat
    listxattrat removexattrat
"""

_MACHINES: Final = {"x86_64": (_X86_64, 0xC000003E), "aarch64": (_GENERIC, 0xC00000B7)}


def numbers(machine: str) -> dict[str, int]:
    """What the calls above are called by on this machine; empty where that is not known."""
    found: dict[str, int] = {}
    text, _ = _MACHINES.get(machine, ("", 0))
    for words in (text, _NEWER if text else ""):
        number = 0
        for word in words.split():
            if word.isdigit():
                number = int(word)
            else:
                found[word] = number
                number += 1
    return found


def architecture(machine: str) -> int | None:
    """AUDIT_ARCH_… of the machine (<linux/audit.h>), by which the kernel names a call's own."""
    found = _MACHINES.get(machine)
    return None if found is None else found[1]
