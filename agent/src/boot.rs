//! The first process of a guest: modules, file systems, network; then the agent goes on as it.
//!
//! The initial file system has this program as `/init`, `/config.json`, and `/modules` with a list
//! `order`. Programs never see it: the root is the image, read-only below an overlay, with a small
//! `/dev` that has no disk and no port in it.

use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::config::{Config, Mount, What};
use crate::network;
use crate::ports::Ports;
use crate::process::{Group, Surroundings};
use crate::sys::{self, MS_BIND, MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT};

const PATIENCE: Duration = Duration::from_secs(10);
const PLAIN: u64 = MS_NOSUID | MS_NODEV | MS_NOEXEC;
const NODES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
/// What of /proc speaks of the machine, or changes it.
const MASKED: &[&str] = &[
    "kcore",
    "keys",
    "key-users",
    "timer_list",
    "kmsg",
    "sched_debug",
    "kallsyms",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
];
const READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Returns only once the guest is to be switched off.
pub fn run() -> Result<()> {
    fs::create_dir_all("/proc")?;
    fs::create_dir_all("/sys")?;
    fs::create_dir_all("/dev")?;
    sys::mount_at("proc", "/proc", "proc", PLAIN, "")?;
    sys::mount_at("sysfs", "/sys", "sysfs", PLAIN, "")?;
    sys::mount_at("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "")?;
    load_modules()?;
    let config =
        Config::read(&fs::read("/config.json")?).map_err(|refusal| Error::other(refusal.to_json()))?;
    let around = Surroundings {
        group: Some(make_group(config.pids)?),
        files: config.files.map(|files| files as u64),
        guest: true,
    };
    mount_root(&config)?;
    let coming = Ports::watch("/dev")?;
    let ports = open_ports(&fs::read_to_string("/ports")?)?;
    sys::set_hostname(&config.hostname)?;
    network::loopback_up()?;
    if let Some(interface) = &config.interface {
        network::configure(interface)?;
    }
    let pressure = File::options()
        .read(true)
        .write(true)
        .custom_flags(sys::O_NONBLOCK as i32)
        .open("/proc/pressure/memory");
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    let mut agent = Agent::new(config, around)?;
    for port in ports {
        agent.add_session(port, true)?;
    }
    agent.watch_ports(coming)?;
    if let Ok(pressure) = pressure {
        let _ = agent.watch_pressure(OwnedFd::from(pressure)); // a kernel without it has no events
    }
    enter_root()?;
    agent.run();
    Ok(())
}

fn load_modules() -> Result<()> {
    for name in fs::read_to_string("/modules/order")?.lines() {
        let path = format!("/modules/{name}");
        match sys::load_module(File::open(&path)?.as_raw_fd()) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::other(format!("{path}: {error}")))
            }
            _ => fs::remove_file(path)?, // the initial file system is memory
        }
    }
    Ok(())
}

fn await_found<T>(what: &str, find: impl Fn() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            return Err(Error::other(format!("{what} did not appear")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn await_path(path: &str) -> Result<()> {
    await_found(path, || Path::new(path).exists().then_some(()))
}

/// The group of all programs: its number of processes is limited, and it can be frozen as a whole.
fn make_group(pids: Option<i64>) -> Result<Group> {
    fs::create_dir_all("/cgroup")?;
    sys::mount_at("cgroup2", "/cgroup", "cgroup2", PLAIN, "")?;
    if pids.is_some() {
        fs::write("/cgroup/cgroup.subtree_control", "+pids")?;
    }
    fs::create_dir("/cgroup/box")?;
    if let Some(pids) = pids {
        fs::write("/cgroup/box/pids.max", pids.to_string())?;
    }
    let open = |name: &str, write: bool| {
        File::options()
            .read(!write)
            .write(write)
            .open(format!("/cgroup/box/{name}"))
    };
    Ok(Group {
        processes: open("cgroup.procs", true)?,
        freeze: open("cgroup.freeze", true)?,
        events: open("cgroup.events", false)?,
        count: pids.map(|_| open("pids.current", false)).transpose()?,
    })
}

fn mount_root(config: &Config) -> Result<()> {
    for folder in ["/lower", "/upper", "/sysroot"] {
        fs::create_dir_all(folder)?;
    }
    await_path(&config.root)?;
    sys::mount_at(&config.root, "/lower", "erofs", MS_RDONLY | MS_NODEV, "")?;
    match &config.upper {
        Some(device) => {
            await_path(device)?;
            sys::mount_at(device, "/upper", "ext4", MS_NODEV, "")?;
        }
        // Only for the points that are mounted on below.
        None => sys::mount_at("tmpfs", "/upper", "tmpfs", MS_NODEV, "size=1m,mode=0755")?,
    }
    fs::create_dir_all("/upper/files")?;
    fs::create_dir_all("/upper/work")?;
    sys::mount_at(
        "overlay",
        "/sysroot",
        "overlay",
        MS_NODEV,
        "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work",
    )?;
    for folder in ["/proc", "/sys", "/dev", "/tmp"] {
        point(folder, true)?;
    }
    if config.upper.is_none() {
        mount_tmpfs("/sysroot/tmp", false, 64 << 20)?;
    }
    for (path, text) in names(&config.hostname) {
        let _ = write_empty(path, &text); // a root may have a folder there, or a link to nowhere
    }
    mount_all(&config.mounts)?;
    if config.upper.is_none() {
        sys::mount_at("overlay", "/sysroot", "", MS_REMOUNT | MS_RDONLY | MS_NODEV, "")?;
    }
    sys::mount_at("sysfs", "/sysroot/sys", "sysfs", PLAIN | MS_RDONLY, "")?;
    mount_proc()?;
    mount_dev()
}

/// What the box knows of names without asking anybody.
fn names(hostname: &str) -> Vec<(&'static str, String)> {
    let local = "127.0.0.1 localhost\n::1 localhost\n";
    if hostname.is_empty() {
        return vec![("/etc/hosts", local.into())];
    }
    vec![
        ("/etc/hosts", format!("{local}127.0.1.1 {hostname}\n")),
        ("/etc/hostname", format!("{hostname}\n")),
    ]
}

/// Write a file of the root that is not there, or is empty, as images have them.
fn write_empty(path: &str, text: &str) -> Result<()> {
    let open = point(path, false)?;
    let place = descriptor(&open);
    let found = fs::metadata(&place)?;
    if found.is_file() && found.len() == 0 {
        fs::write(&place, text)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

fn mount_all(mounts: &[Mount]) -> Result<()> {
    if mounts
        .iter()
        .any(|mount| matches!(mount.what, What::Share { .. }))
    {
        fs::create_dir("/shares")?;
        sys::mount_at("shares", "/shares", "virtiofs", MS_NOSUID | MS_NODEV, "")?;
    }
    for mount in mounts {
        match &mount.what {
            What::Tmpfs(size) => {
                let place = point(&mount.target, true)?;
                mount_tmpfs(&descriptor(&place), mount.readonly, *size)?;
            }
            What::Share { name, folder } => {
                let place = point(&mount.target, *folder)?;
                sys::mount_at(&format!("/shares/{name}"), &descriptor(&place), "", MS_BIND, "")?;
                // What is mounted there now is not what the descriptor is.
                let readonly = if mount.readonly { MS_RDONLY } else { 0 };
                let flags = MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV | readonly;
                sys::mount_at("", &descriptor(&point(&mount.target, *folder)?), "", flags, "")?;
            }
        }
    }
    Ok(())
}

fn mount_tmpfs(target: &str, readonly: bool, size: i64) -> Result<()> {
    let flags = MS_NOSUID | MS_NODEV | if readonly { MS_RDONLY } else { 0 };
    sys::mount_at("tmpfs", target, "tmpfs", flags, &format!("size={size},mode=1777"))
}

/// A place in the root to mount on, made where it is missing. A link in the way leads where a
/// program in the box would see it lead.
fn point(path: &str, folder: bool) -> Result<OwnedFd> {
    let named = |error: Error| Error::new(error.kind(), format!("{path}: {error}"));
    let root = sys::open_at(-100, "/sysroot", sys::O_PATH | sys::O_DIRECTORY, 0, 0)?;
    let open = |path: &str, flags| {
        let flags = sys::O_PATH | flags;
        sys::open_at(root.as_raw_fd(), path, flags, 0, sys::IN_ROOT)
    };
    let path = path.trim_matches('/');
    let mut at = open(".", sys::O_DIRECTORY).map_err(named)?;
    for (index, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let (part, last) = (&path[..index], index == path.len());
        let kind = if last && !folder { 0 } else { sys::O_DIRECTORY };
        at = match open(part, kind) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let name = part.rsplit('/').next().unwrap_or(part);
                if last && !folder {
                    let flags = sys::O_WRONLY | sys::O_CREAT | sys::O_EXCL;
                    sys::open_at(at.as_raw_fd(), name, flags, 0o644, sys::BENEATH).map_err(named)?;
                } else {
                    sys::make_folder(at.as_raw_fd(), name.as_bytes(), 0o755).map_err(named)?;
                }
                open(part, kind)
            }
            found => found,
        }
        .map_err(named)?;
    }
    Ok(at)
}

fn descriptor(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn mount_proc() -> Result<()> {
    // Who has no more capabilities than a program (and is not of group gid) sees neither the kernel's threads nor the agent.
    sys::mount_at("proc", "/sysroot/proc", "proc", PLAIN, "hidepid=2,gid=4294967294")?;
    for name in MASKED {
        let path = format!("/sysroot/proc/{name}");
        if Path::new(&path).exists() {
            sys::mount_at("/dev/null", &path, "", MS_BIND, "")?;
        }
    }
    for name in READ_ONLY {
        let path = format!("/sysroot/proc/{name}");
        if Path::new(&path).exists() {
            sys::mount_at(&path, &path, "", MS_BIND, "")?;
            sys::mount_at(&path, &path, "", MS_BIND | MS_REMOUNT | MS_RDONLY | PLAIN, "")?;
        }
    }
    Ok(())
}

fn mount_dev() -> Result<()> {
    sys::mount_at(
        "tmpfs",
        "/sysroot/dev",
        "tmpfs",
        MS_NOSUID | MS_NOEXEC,
        "size=64k,mode=0755",
    )?;
    for name in NODES {
        let path = format!("/sysroot/dev/{name}");
        File::create(&path)?;
        sys::mount_at(&format!("/dev/{name}"), &path, "", MS_BIND, "")?;
    }
    fs::create_dir("/sysroot/dev/pts")?;
    fs::create_dir("/sysroot/dev/shm")?;
    sys::mount_at(
        "devpts",
        "/sysroot/dev/pts",
        "devpts",
        MS_NOSUID | MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    sys::mount_at("tmpfs", "/sysroot/dev/shm", "tmpfs", PLAIN, "size=64m,mode=1777")?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, format!("/sysroot/dev/{name}"))?;
    }
    Ok(())
}

/// All of them, so that no program could: a port can be opened once.
fn open_ports(count: &str) -> Result<Vec<OwnedFd>> {
    let count: usize = count
        .trim()
        .parse()
        .map_err(|_| Error::other("/ports has no number"))?;
    let mut ports = Vec::new();
    for number in 1..=count {
        // vport2p1: the first port of the third virtio device. Its node is there a moment before it
        // can be opened.
        let end = format!("p{number}");
        let port = await_found("a virtio port", || {
            let names = fs::read_dir("/dev")
                .ok()?
                .flatten()
                .map(|entry| entry.file_name());
            let mut names = names.filter_map(|name| name.into_string().ok());
            let name = names.find(|name| name.starts_with("vport") && name.ends_with(&end))?;
            let mut options = File::options();
            options
                .read(true)
                .write(true)
                .custom_flags(sys::O_NONBLOCK as i32);
            options.open(format!("/dev/{name}")).ok()
        })?;
        ports.push(OwnedFd::from(port));
    }
    Ok(ports)
}

/// The box's root becomes this process's, as switch_root(8) does it: nothing leads back.
fn enter_root() -> Result<()> {
    std::env::set_current_dir("/sysroot")?;
    sys::mount_at(".", "/", "", MS_MOVE, "")?;
    sys::change_root(".")?;
    std::env::set_current_dir("/")
}
