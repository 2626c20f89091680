//! One program of the guest: how it is started, and what is known of it until its end is told.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::fields::{Fields, Refusal};
use crate::policy::{Policy, Program};
use crate::{filter, sys, wire};

const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A request to run a program, read and checked.
pub struct Start {
    pub argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    user: u32,
    group: u32,
    groups: Vec<u32>,
    capabilities: u64,
    names: Vec<String>,
    pub tty: bool,
    size: (u16, u16),
    pub stdin: bool,
    pub main: bool,
    pub detach: bool,
}

impl Start {
    pub fn read(fields: &mut Fields) -> std::result::Result<Start, Refusal> {
        let argv = fields.texts("argv")?;
        if argv.first().is_none_or(String::is_empty) {
            return Err(Refusal::invalid("argv", "expected a program"));
        }
        let names = fields.texts("capabilities")?;
        let mut capabilities = 0;
        for name in &names {
            let at = NAMES
                .iter()
                .position(|known| name.strip_prefix("CAP_") == Some(known));
            let at =
                at.ok_or_else(|| Refusal::invalid("capabilities", format!("{name} is no capability")))?;
            capabilities |= 1 << at;
        }
        let id = i64::from(u32::MAX);
        let start = Start {
            argv,
            env: fields.object("env")?.map_or(Ok(Vec::new()), Fields::into_texts)?,
            cwd: fields.text("cwd")?.unwrap_or_else(|| "/".to_string()),
            user: fields.number("user", 0, id)?.unwrap_or(0) as u32,
            group: fields.number("group", 0, id)?.unwrap_or(0) as u32,
            groups: fields
                .numbers("groups", id)?
                .into_iter()
                .map(|group| group as u32)
                .collect(),
            capabilities,
            names,
            tty: fields.flag("tty", false)?,
            size: (
                fields.number("rows", 1, 65535)?.unwrap_or(24) as u16,
                fields.number("columns", 1, 65535)?.unwrap_or(80) as u16,
            ),
            stdin: fields.flag("stdin", false)?,
            main: fields.flag("main", false)?,
            detach: fields.flag("detach", false)?,
        };
        if start.detach && start.tty {
            return Err(Refusal::invalid("tty", "a detached program has no terminal"));
        }
        Ok(start)
    }

    pub fn check(&self, policy: &Policy) -> std::result::Result<(), Refusal> {
        let program = Program {
            name: &self.argv[0],
            env: &self.env,
            user: i64::from(self.user),
            tty: self.tty,
            capabilities: &self.names,
        };
        policy.check_program(&program, self.main)
    }
}

/// Files of the control group that all programs are in; this one is not.
pub struct Group {
    pub processes: File,
    pub freeze: File,
    pub events: File,
    /// `pids.current`, where the number of processes is limited.
    pub count: Option<File>,
}

impl Group {
    /// How many processes and threads are in it, if the kernel counts them.
    pub fn tasks(&self) -> Option<i64> {
        let mut text = [0; 24];
        let count = self.count.as_ref()?.read_at(&mut text, 0).ok()?;
        String::from_utf8_lossy(&text[..count]).trim().parse().ok()
    }

    /// Let nothing in it run, or let it run again; returns once that is so.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let digit = if frozen { "1" } else { "0" };
        sys::write_some(self.freeze.as_raw_fd(), digit.as_bytes())?;
        let start = Instant::now();
        let wanted = format!("frozen {digit}");
        while start.elapsed() < Duration::from_secs(5) {
            let mut text = [0; 256];
            let count = self.events.read_at(&mut text, 0)?;
            if String::from_utf8_lossy(&text[..count]).contains(&wanted) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(Error::other("the programs do not stop"))
    }
}

/// What every program gets from the guest that it runs in.
#[derive(Default)]
pub struct Surroundings {
    pub group: Option<Group>,
    pub files: Option<u64>,
    /// Whether this is a guest's first process, which has privileges to give up and a filter to set.
    pub guest: bool,
}

pub struct Output {
    pub fd: OwnedFd,
    pub credit: u32,
    pub polled: bool,
}

pub struct Process {
    pub pid: i32,
    /// Session and id of the request, `None` where nobody waits.
    pub owner: Option<(usize, u32)>,
    pub name: String,
    pub tty: bool,
    pub main: bool,
    pub stdin: Option<OwnedFd>,
    pub pending: Vec<u8>,
    pub closing: bool,
    /// By channel: 1 is standard output (or the terminal), 2 standard error.
    pub outputs: HashMap<u8, Output>,
    pub exit: Option<i32>,
}

impl Process {
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match self.outputs.get(&1) {
            Some(output) if self.tty => resize(&output.fd, rows, columns),
            _ => Ok(()),
        }
    }
}

fn resize(master: &OwnedFd, rows: u16, columns: u16) -> Result<()> {
    sys::ioctl(master.as_raw_fd(), 0x5414, &mut [rows, columns, 0, 0]) // TIOCSWINSZ
}

/// The exit status, or 128 + N after signal N.
pub fn exit_code(status: i32) -> i32 {
    match status & 0x7f {
        0 => (status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

/// Start it; its descriptors here are non-blocking, and nothing of them is polled yet.
pub fn spawn(start: Start, owner: (usize, u32), around: &Surroundings) -> Result<Process> {
    let mut command = Command::new(&start.argv[0]);
    command
        .args(&start.argv[1..])
        .env_clear()
        .envs(start.env)
        .current_dir(&start.cwd);
    let mut stdin = None;
    let mut outputs = Vec::new();
    if start.tty {
        let master = OwnedFd::from(File::options().read(true).write(true).open("/dev/ptmx")?);
        let slave = sys::terminal_peer(master.as_raw_fd())?;
        resize(&master, start.size.0, start.size.1)?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        stdin = Some(sys::duplicate(master.as_fd())?);
        outputs.push((1, master));
    } else if start.detach {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    } else {
        if start.stdin {
            let (theirs, ours) = sys::pipe()?;
            command.stdin(theirs);
            stdin = Some(ours);
        } else {
            command.stdin(Stdio::null());
        }
        let (ours, theirs) = sys::pipe()?;
        command.stdout(theirs);
        outputs.push((1, ours));
        let (ours, theirs) = sys::pipe()?;
        command.stderr(theirs);
        outputs.push((2, ours));
    }
    for fd in stdin.iter().chain(outputs.iter().map(|(_, fd)| fd)) {
        sys::nonblocking(fd.as_raw_fd())?;
    }
    let group = around.group.as_ref().map(|group| group.processes.as_raw_fd());
    let (guest, files, tty) = (around.guest, around.files, start.tty);
    let (user, gid, groups, capabilities) = (start.user, start.group, start.groups, start.capabilities);
    let filter = if guest { filter::program() } else { Vec::new() };
    // SAFETY: this program has one thread, so that a child between fork and exec may do anything.
    unsafe {
        command.pre_exec(move || {
            sys::new_session(tty)?;
            sys::set_umask(0o022);
            if let Some(group) = group {
                sys::write_some(group, b"0")?;
            }
            if guest {
                std::fs::write("/proc/self/oom_score_adj", "0")?;
            }
            if let Some(files) = files {
                sys::limit(7, files)?;
            }
            sys::limit(4, 0)?; // no core files
            sys::Credentials {
                user,
                group: gid,
                groups: &groups,
                capabilities,
            }
            .apply(guest)?;
            sys::unblock_signals()?;
            if guest {
                sys::filter(&filter)?;
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(|_| Error::other("a process id that is none"))?;
    let outputs = outputs
        .into_iter()
        .map(|(channel, fd)| {
            (
                channel,
                Output {
                    fd,
                    credit: wire::WINDOW,
                    polled: false,
                },
            )
        })
        .collect();
    Ok(Process {
        pid,
        owner: (!start.detach).then_some(owner),
        name: start.argv[0].clone(),
        tty: start.tty,
        main: start.main,
        stdin,
        pending: Vec::new(),
        closing: false,
        outputs,
        exit: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_by_signal_is_told_from_a_status() {
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(11 | 0x80), 139);
    }

    #[test]
    fn capabilities_have_the_kernel_s_numbers() {
        let read = |text: &str| Start::read(&mut Fields::parse(text.as_bytes(), "").unwrap());
        let start = read(r#"{"argv":["x"],"capabilities":["CAP_CHOWN","CAP_SYS_ADMIN","CAP_BPF"]}"#)
            .ok()
            .unwrap();
        assert_eq!(start.capabilities, 1 | 1 << 21 | 1 << 39);
        assert_eq!(
            read(r#"{"argv":["x"],"capabilities":["CHOWN"]}"#)
                .err()
                .unwrap()
                .field,
            "capabilities"
        );
        assert_eq!(read(r#"{"argv":[]}"#).err().unwrap().field, "argv");
    }
}
