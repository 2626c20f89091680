//! Ports of the host that come while the guest runs: their nodes appear in a `/dev` that programs do not
//! see, a moment before they can be opened.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::{sys, wire};

const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN_MILLISECONDS: i32 = 5;

pub struct Ports {
    devices: OwnedFd,
    watch: OwnedFd,
    waiting: Vec<(String, Instant)>,
}

impl Ports {
    /// Watch a folder of devices, from now on.
    pub fn watch(path: &str) -> Result<Ports> {
        Ok(Ports {
            devices: sys::open_at(-100, path, sys::O_PATH | sys::O_DIRECTORY, 0, 0)?,
            watch: sys::watch_folder(path)?,
            waiting: Vec::new(),
        })
    }

    pub fn raw(&self) -> RawFd {
        self.watch.as_raw_fd()
    }

    /// Take the names of what has appeared.
    pub fn look(&mut self) {
        let mut buffer = Vec::new();
        while sys::read_into(self.raw(), &mut buffer, 4096).is_ok() {
            for name in names(&buffer) {
                self.waiting.push((name, Instant::now() + PATIENCE));
            }
            buffer.clear();
        }
    }

    /// Those that can be opened now.
    pub fn open(&mut self) -> Vec<OwnedFd> {
        let mut opened = Vec::new();
        let devices = self.devices.as_raw_fd();
        self.waiting.retain(|(name, deadline)| {
            let flags = sys::O_RDWR | sys::O_NONBLOCK;
            match sys::open_at(devices, name, flags, 0, sys::BENEATH) {
                Ok(port) => {
                    opened.push(port);
                    false
                }
                Err(error) => !is_open(&error) && Instant::now() < *deadline,
            }
        });
        opened
    }

    /// After how many milliseconds `open` is worth another try; -1 is never.
    pub fn timeout(&self) -> i32 {
        if self.waiting.is_empty() {
            -1
        } else {
            AGAIN_MILLISECONDS
        }
    }
}

/// EBUSY: a port can be opened once, and it is ours already.
fn is_open(error: &Error) -> bool {
    error.raw_os_error() == Some(16)
}

/// Of ports, in events as inotify(7) has them.
fn names(mut events: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while events.len() >= 16 {
        let length = wire::number(&events[12..]) as usize;
        let Some(name) = events.get(16..16 + length) else {
            break;
        };
        let name = String::from_utf8_lossy(name);
        let name = name.trim_end_matches('\0');
        if name.starts_with("vport") {
            found.push(name.to_string());
        }
        events = &events[16 + length..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_their_padding_and_from_other_devices() {
        let mut events = Vec::new();
        for name in ["vport2p3", "vda", "vport2p10"] {
            events.extend_from_slice(&[0; 12]);
            events.extend_from_slice(&16u32.to_le_bytes());
            let mut padded = name.as_bytes().to_vec();
            padded.resize(16, 0);
            events.extend_from_slice(&padded);
        }
        assert_eq!(names(&events), ["vport2p3", "vport2p10"]);
        assert!(names(&events[..20]).is_empty());
    }
}
