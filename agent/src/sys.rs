//! The system calls that the standard library does not offer, each as one small safe function.

use std::ffi::{c_char, c_int, c_long, c_ulong, c_void, CString};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

extern "C" {
    fn accept4(fd: c_int, address: *mut c_void, length: *mut u32, flags: c_int) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn clock_settime(clock: c_int, time: *const Time) -> c_int;
    fn dup(fd: c_int) -> c_int;
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut Event) -> c_int;
    fn epoll_wait(epoll: c_int, events: *mut Event, most: c_int, timeout: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn fchown(fd: c_int, user: u32, group: u32) -> c_int;
    fn futimens(fd: c_int, times: *const [Time; 2]) -> c_int;
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int;
    fn inotify_init1(flags: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn mkdirat(fd: c_int, path: *const c_char, mode: u32) -> c_int;
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn pipe2(fds: *mut [c_int; 2], flags: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn read(fd: c_int, buffer: *mut c_void, size: usize) -> isize;
    fn reboot(command: c_int) -> c_int;
    fn setgid(group: u32) -> c_int;
    fn setgroups(size: usize, groups: *const u32) -> c_int;
    fn sethostname(name: *const c_char, size: usize) -> c_int;
    fn setsid() -> c_int;
    fn setuid(user: u32) -> c_int;
    fn signalfd(fd: c_int, mask: *const [u64; 16], flags: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const [u64; 16], old: *mut [u64; 16]) -> c_int;
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn sync();
    fn syscall(number: c_long, ...) -> c_long;
    fn umask(mask: u32) -> u32;
    fn unlinkat(fd: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn write(fd: c_int, buffer: *const c_void, size: usize) -> isize;
}

#[cfg(target_arch = "x86_64")]
mod number {
    pub const IOCTL: i64 = 16;
    pub const SETRLIMIT: i64 = 160;
    pub const FINIT_MODULE: i64 = 313;
    pub const SYMLINKAT: i64 = 266;
    pub const LINKAT: i64 = 265;
    pub const SECCOMP: i64 = 317;
    pub const OPENAT2: i64 = 437;
}

pub const EPOLLIN: u32 = 1;
pub const EPOLLPRI: u32 = 2;
pub const EPOLLOUT: u32 = 4;
pub const EPOLLHUP: u32 = 0x10;
pub const EPOLLET: u32 = 1 << 31;

pub const O_RDONLY: u64 = 0;
pub const O_WRONLY: u64 = 1;
pub const O_RDWR: u64 = 2;
pub const O_CREAT: u64 = 0o100;
pub const O_EXCL: u64 = 0o200;
pub const O_NOCTTY: u64 = 0o400;
pub const O_NONBLOCK: u64 = 0o4000;
pub const O_DIRECTORY: u64 = 0o200000;
pub const O_NOFOLLOW: u64 = 0o400000;
pub const O_CLOEXEC: u64 = 0o2000000;
pub const O_PATH: u64 = 0o10000000;
pub const BENEATH: u64 = 8;
pub const IN_ROOT: u64 = 16;

pub const SIGHUP: i32 = 1;
pub const SIGKILL: i32 = 9;
pub const SIGTERM: i32 = 15;
pub const SIGCHLD: i32 = 17;

pub const MS_RDONLY: u64 = 1;
pub const MS_NOSUID: u64 = 2;
pub const MS_NODEV: u64 = 4;
pub const MS_NOEXEC: u64 = 8;
pub const MS_REMOUNT: u64 = 32;
pub const MS_BIND: u64 = 4096;
pub const MS_MOVE: u64 = 8192;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: i64,
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Event {
    pub events: u32,
    pub token: u64,
}

fn check(answer: c_int) -> Result<c_int> {
    if answer < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(answer)
    }
}

fn check_long(answer: c_long) -> Result<c_long> {
    if answer < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(answer)
    }
}

fn owned(answer: c_int) -> Result<OwnedFd> {
    // SAFETY: the kernel has just given this descriptor to nobody else.
    check(answer).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A string for the kernel. NUL is refused where requests are read; one that is here ends the text.
pub fn text(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    CString::new(bytes).unwrap_or_default()
}

pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> Result<Epoll> {
        // SAFETY: no memory is handed over.
        owned(unsafe { epoll_create1(O_CLOEXEC as c_int) }).map(Epoll)
    }

    pub fn add(&self, fd: RawFd, events: u32, token: u64) -> Result<()> {
        let mut event = Event { events, token };
        // SAFETY: the event lives through the call.
        check(unsafe { epoll_ctl(self.0.as_raw_fd(), 1, fd, &mut event) }).map(drop)
    }

    pub fn remove(&self, fd: RawFd) {
        let mut event = Event { events: 0, token: 0 };
        // SAFETY: the event lives through the call. One that is not registered is no harm.
        unsafe { epoll_ctl(self.0.as_raw_fd(), 2, fd, &mut event) };
    }

    /// What is ready; nothing after `timeout` milliseconds, -1 for never.
    pub fn wait(&self, timeout: i32) -> Vec<Event> {
        let mut events = [Event { events: 0, token: 0 }; 16];
        // SAFETY: the kernel fills at most 16 events.
        let count = unsafe { epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 16, timeout) };
        events[..count.max(0) as usize].to_vec()
    }
}

/// Read into the unused end of a vector; the count of bytes, 0 at the end.
pub fn read_into(fd: RawFd, buffer: &mut Vec<u8>, most: usize) -> Result<usize> {
    buffer.reserve(most);
    // SAFETY: `most` bytes were reserved, and the length grows by what was written there.
    unsafe {
        let count = read(fd, buffer.as_mut_ptr().add(buffer.len()).cast(), most);
        if count < 0 {
            return Err(Error::last_os_error());
        }
        buffer.set_len(buffer.len() + count as usize);
        Ok(count as usize)
    }
}

pub fn write_some(fd: RawFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads only within the slice.
    let count = unsafe { write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if count < 0 {
        return Err(Error::last_os_error());
    }
    Ok(count as usize)
}

pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: two descriptors are written, which nobody else has.
    unsafe {
        check(pipe2(&mut fds, O_CLOEXEC as c_int))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

pub fn nonblocking(fd: RawFd) -> Result<()> {
    // SAFETY: no memory is handed over.
    unsafe {
        let flags = check(fcntl(fd, 3))?;
        check(fcntl(fd, 4, flags | O_NONBLOCK as c_int)).map(drop)
    }
}

pub fn duplicate(fd: BorrowedFd) -> Result<OwnedFd> {
    // SAFETY: no memory is handed over.
    owned(unsafe { dup(fd.as_raw_fd()) })
}

pub fn accept(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: no address is asked for.
    owned(unsafe {
        accept4(
            fd,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (O_CLOEXEC | O_NONBLOCK) as c_int,
        )
    })
}

/// Open below `folder` with openat2(2), whose `resolve` bounds where symbolic links may lead.
pub fn open_at(folder: RawFd, path: &str, flags: u64, mode: u64, resolve: u64) -> Result<OwnedFd> {
    open_bytes(folder, path.as_bytes(), flags, mode, resolve)
}

pub fn open_bytes(folder: RawFd, path: &[u8], flags: u64, mode: u64, resolve: u64) -> Result<OwnedFd> {
    let how = [flags | O_CLOEXEC, mode, resolve];
    let path = text(path);
    // SAFETY: `how` is the kernel's struct open_how of 24 bytes; both live through the call.
    let answer = unsafe { syscall(number::OPENAT2, folder, path.as_ptr(), how.as_ptr(), 24usize) };
    owned(check_long(answer)? as c_int)
}

pub fn make_folder(folder: RawFd, name: &[u8], mode: u32) -> Result<()> {
    let name = text(name);
    // SAFETY: the name lives through the call.
    check(unsafe { mkdirat(folder, name.as_ptr(), mode) }).map(drop)
}

pub fn make_symlink(target: &[u8], folder: RawFd, name: &[u8]) -> Result<()> {
    let (target, name) = (text(target), text(name));
    // SAFETY: both names live through the call.
    check_long(unsafe { syscall(number::SYMLINKAT, target.as_ptr(), folder, name.as_ptr()) }).map(drop)
}

pub fn make_link(old: RawFd, old_name: &[u8], new: RawFd, name: &[u8]) -> Result<()> {
    let (old_name, name) = (text(old_name), text(name));
    // SAFETY: both names live through the call; a symbolic link is linked itself, not followed.
    check_long(unsafe { syscall(number::LINKAT, old, old_name.as_ptr(), new, name.as_ptr(), 0usize) })
        .map(drop)
}

pub fn remove_file(folder: RawFd, name: &[u8]) -> Result<()> {
    let name = text(name);
    // SAFETY: the name lives through the call.
    check(unsafe { unlinkat(folder, name.as_ptr(), 0) }).map(drop)
}

pub fn change_owner(fd: RawFd, user: u32, group: u32) -> Result<()> {
    // SAFETY: no memory is handed over.
    check(unsafe { fchown(fd, user, group) }).map(drop)
}

pub fn change_time(fd: RawFd, seconds: i64) -> Result<()> {
    let time = Time {
        seconds,
        nanoseconds: 0,
    };
    // SAFETY: two times, as the call demands.
    check(unsafe { futimens(fd, &[time, time]) }).map(drop)
}

pub fn send_signal(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: no memory is handed over.
    check(unsafe { kill(pid, signal) }).map(drop)
}

/// A descriptor that becomes readable when one of the signals is there; they have no other effect.
pub fn signals(numbers: &[i32]) -> Result<OwnedFd> {
    let mut set = [0u64; 16];
    for number in numbers {
        set[0] |= 1 << (number - 1);
    }
    // SAFETY: the set has the C library's 128 bytes.
    unsafe {
        check(sigprocmask(0, &set, std::ptr::null_mut()))?;
        owned(signalfd(-1, &set, (O_CLOEXEC | O_NONBLOCK) as c_int))
    }
}

/// Be told of what is made in a folder.
pub fn watch_folder(path: &str) -> Result<OwnedFd> {
    let path = text(path);
    // SAFETY: the path lives through the call; IN_CREATE is a number.
    unsafe {
        let watch = owned(inotify_init1((O_CLOEXEC | O_NONBLOCK) as c_int))?;
        check(inotify_add_watch(watch.as_raw_fd(), path.as_ptr(), 0x100))?;
        Ok(watch)
    }
}

/// Undo `signals` for a child.
pub fn unblock_signals() -> Result<()> {
    // SAFETY: the set has the C library's 128 bytes.
    check(unsafe { sigprocmask(2, &[0; 16], std::ptr::null_mut()) }).map(drop)
}

/// A child that has ended, with its status as wait(2) gives it.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the status lives through the call; 1 is WNOHANG.
    let pid = unsafe { waitpid(-1, &mut status, 1) };
    (pid > 0).then_some((pid, status))
}

pub fn become_subreaper() {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes numbers alone.
    unsafe { prctl(36, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) };
}

pub fn ioctl<T>(fd: RawFd, request: u64, argument: &mut T) -> Result<()> {
    // SAFETY: every use here passes the struct that its request names.
    check_long(unsafe { syscall(number::IOCTL, fd, request, std::ptr::from_mut(argument)) }).map(drop)
}

/// The other side of a pseudo-terminal's master (TIOCGPTPEER), without a path that could be another's.
pub fn terminal_peer(master: RawFd) -> Result<OwnedFd> {
    // SAFETY: no memory is handed over; TIOCSPTLCK reads one number that lives through the call.
    unsafe {
        let unlock: c_int = 0;
        check_long(syscall(number::IOCTL, master, 0x4004_5431usize, &unlock))?;
        let flags = 2 | O_NOCTTY | O_CLOEXEC;
        owned(check_long(syscall(number::IOCTL, master, 0x5441usize, flags))? as c_int)
    }
}

/// `ioctl` whose argument is a number.
pub fn ioctl_number(fd: RawFd, request: u64, argument: u64) -> Result<()> {
    // SAFETY: no memory is handed over.
    check_long(unsafe { syscall(number::IOCTL, fd, request, argument) }).map(drop)
}

/// What a child is to be before its program starts.
pub struct Credentials<'a> {
    pub user: u32,
    pub group: u32,
    pub groups: &'a [u32],
    pub capabilities: u64,
}

impl Credentials<'_> {
    /// Only numbers go to the kernel, and nothing is allocated: callable between fork and exec.
    pub fn apply(&self, privileged: bool) -> Result<()> {
        // SAFETY: the groups live through the call; the rest are numbers.
        unsafe {
            if privileged {
                check(setgroups(self.groups.len(), self.groups.as_ptr()))?;
                check(setgid(self.group))?;
                for capability in 0..64 {
                    if self.capabilities & (1 << capability) == 0 {
                        // PR_CAPBSET_DROP; a number that the kernel does not know ends the list.
                        if prctl(
                            24,
                            capability as c_ulong,
                            0 as c_ulong,
                            0 as c_ulong,
                            0 as c_ulong,
                        ) < 0
                        {
                            break;
                        }
                    }
                }
                check(setuid(self.user))?;
            }
            check(prctl(38, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong)).map(drop)
            // PR_SET_NO_NEW_PRIVS
        }
    }
}

pub fn limit(resource: u64, most: u64) -> Result<()> {
    let pair = [most, most];
    // SAFETY: the kernel's struct rlimit is two such numbers.
    check_long(unsafe { syscall(number::SETRLIMIT, resource, pair.as_ptr()) }).map(drop)
}

/// A session and, with a terminal, standard input as what controls it.
pub fn new_session(terminal: bool) -> Result<()> {
    // SAFETY: no memory is handed over.
    check(unsafe { setsid() })?;
    if terminal {
        ioctl_number(0, 0x540e, 0)?; // TIOCSCTTY
    }
    Ok(())
}

/// Install a seccomp filter; `program` is of struct sock_filter, 8 bytes each.
pub fn filter(program: &[[u8; 8]]) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const [u8; 8],
    }
    let program = Program {
        length: program.len() as u16,
        filter: program.as_ptr(),
    };
    // SAFETY: the program lives through the call, which copies it; 1 is SECCOMP_SET_MODE_FILTER.
    check_long(unsafe { syscall(number::SECCOMP, 1usize, 0usize, &program) }).map(drop)
}

pub fn mount_at(source: &str, target: &str, kind: &str, flags: u64, data: &str) -> Result<()> {
    let (source, target, kind, data) = (text(source), text(target), text(kind), text(data));
    // SAFETY: all strings live through the call.
    check(unsafe {
        mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    })
    .map(drop)
    .map_err(|error| {
        Error::new(
            error.kind(),
            format!(
                "mount {} on {}: {error}",
                source.to_string_lossy(),
                target.to_string_lossy()
            ),
        )
    })
}

pub fn change_root(path: &str) -> Result<()> {
    let path = text(path);
    // SAFETY: the path lives through the call.
    check(unsafe { chroot(path.as_ptr()) }).map(drop)
}

pub fn load_module(fd: RawFd) -> Result<()> {
    // SAFETY: the empty string of parameters lives for ever.
    check_long(unsafe { syscall(number::FINIT_MODULE, fd, c"".as_ptr(), 0usize) }).map(drop)
}

pub fn set_hostname(name: &str) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the name has.
    check(unsafe { sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

pub fn set_clock(nanoseconds: i64) -> Result<()> {
    let time = Time {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanoseconds: nanoseconds.rem_euclid(1_000_000_000),
    };
    // SAFETY: the time lives through the call; 0 is CLOCK_REALTIME.
    check(unsafe { clock_settime(0, &time) }).map(drop)
}

pub fn set_umask(mask: u32) {
    // SAFETY: cannot fail.
    unsafe { umask(mask) };
}

pub fn netlink() -> Result<OwnedFd> {
    // SAFETY: AF_NETLINK, SOCK_RAW and NETLINK_ROUTE are numbers.
    owned(unsafe { socket(16, 3 | O_CLOEXEC as c_int, 0) })
}

pub fn sync_all() {
    // SAFETY: cannot fail.
    unsafe { sync() };
}

pub fn power_off() {
    // SAFETY: RB_POWER_OFF; returns only where it is refused.
    unsafe { reboot(0x4321_fedc) };
}
