//! Files in and out, as a stream of records: `length: u32`, that many bytes of JSON, and as many
//! bytes of content as its `size` says.
//!
//! Every name is resolved by the kernel below a descriptor (openat2(2)), so that no symbolic link,
//! whenever it is made, leads out of the folder that was named. Names are bytes, written in JSON as
//! the characters U+0000 to U+00FF.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{Error, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use crate::fields::{Fields, Refusal};
use crate::json::{object, Value};
use crate::policy::Policy;
use crate::{sys, wire};

const DEPTH: usize = 128;
const HEADER: usize = 64 * 1024;
const FOLDER: u64 = sys::O_PATH | sys::O_DIRECTORY;

fn bytes_of(text: &str, field: &str) -> Result<Vec<u8>, Refusal> {
    let bytes: Option<Vec<u8>> = text
        .chars()
        .map(|sign| u8::try_from(u32::from(sign)).ok())
        .collect();
    bytes
        .filter(|bytes| !bytes.contains(&0))
        .ok_or_else(|| Refusal::invalid(field, "expected bytes as characters up to U+00FF"))
}

fn text_of(bytes: &[u8]) -> Value {
    Value::Text(bytes.iter().map(|byte| char::from(*byte)).collect())
}

fn descriptor(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Open what a request names, and hold both the name and where it really leads against the policy.
fn open_checked(policy: &Policy, inward: bool, path: &str, flags: u64) -> Result<OwnedFd, Refusal> {
    let clean = path.starts_with('/')
        && (path == "/" || path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")));
    if !clean {
        return Err(Refusal::invalid("path", "expected an absolute path without `..`"));
    }
    policy.check_copy(inward, path)?;
    let root = sys::open_at(-100, "/", FOLDER, 0, 0).map_err(|error| Refusal::system("/", &error))?;
    let fd = sys::open_at(root.as_raw_fd(), path, flags, 0, sys::IN_ROOT)
        .map_err(|error| Refusal::system(path, &error))?;
    let real = std::fs::read_link(descriptor(&fd)).map_err(|error| Refusal::system(path, &error))?;
    policy.check_copy(inward, &real.to_string_lossy())?;
    Ok(fd)
}

/// A name in an archive: no empty, `.` or `..` part, and not absolute.
fn split(name: &[u8]) -> Result<(Option<&[u8]>, &[u8]), Refusal> {
    if name
        .split(|byte| *byte == b'/')
        .any(|part| matches!(part, b"" | b"." | b".."))
    {
        return Err(Refusal::invalid(
            "name",
            format!("{:?} is no name below the folder", OsStr::from_bytes(name)),
        ));
    }
    Ok(match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (Some(&name[..at]), &name[at + 1..]),
        None => (None, name),
    })
}

struct Writing {
    file: File,
    left: u64,
    owner: (u32, u32),
    mode: u32,
    mtime: i64,
}

/// Files that come in; fed with bytes as they come.
pub struct Put {
    folder: OwnedFd,
    resolve: u64,
    buffer: Vec<u8>,
    writing: Option<Writing>,
}

impl Put {
    pub fn open(policy: &Policy, path: &str) -> Result<Put, Refusal> {
        let folder = open_checked(policy, true, path, FOLDER)?;
        // In the whole root an absolute link leads where programs see it lead; below a folder none does.
        let resolve = if path == "/" { sys::IN_ROOT } else { sys::BENEATH };
        Ok(Put {
            folder,
            resolve,
            buffer: Vec::new(),
            writing: None,
        })
    }

    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            if let Some(writing) = &mut self.writing {
                let count = writing.left.min(bytes.len() as u64) as usize;
                writing
                    .file
                    .write_all(&bytes[..count])
                    .map_err(|error| Refusal::system("write", &error))?;
                writing.left -= count as u64;
                bytes = &bytes[count..];
                self.close()?;
                continue;
            }
            let wanted = if self.buffer.len() < 4 {
                4
            } else {
                4 + self.header_length()?
            };
            let count = (wanted - self.buffer.len()).min(bytes.len());
            self.buffer.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.buffer.len() >= 4 && self.buffer.len() == 4 + self.header_length()? {
                let header = std::mem::take(&mut self.buffer);
                self.start(&header[4..])?;
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Result<(), Refusal> {
        if self.writing.is_some() || !self.buffer.is_empty() {
            return Err(Refusal::invalid("", "the stream ends within a file"));
        }
        Ok(())
    }

    fn header_length(&self) -> Result<usize, Refusal> {
        match wire::number(&self.buffer) as usize {
            length @ 2..=HEADER => Ok(length),
            length => Err(Refusal::invalid("", format!("got a header of {length} bytes"))),
        }
    }

    /// Owner, mode and time, once all bytes are there: before, nobody may open it.
    fn close(&mut self) -> Result<(), Refusal> {
        if let Some(writing) = self.writing.take_if(|writing| writing.left == 0) {
            let fd = writing.file.as_raw_fd();
            let done = sys::change_owner(fd, writing.owner.0, writing.owner.1)
                .and_then(|()| writing.file.set_permissions(Permissions::from_mode(writing.mode)))
                .and_then(|()| sys::change_time(fd, writing.mtime));
            done.map_err(|error| Refusal::system("set the owner of a file", &error))?;
        }
        Ok(())
    }

    fn parent(&self, parent: Option<&[u8]>) -> Result<OwnedFd, Refusal> {
        let path = parent.unwrap_or(b".");
        let shown = || String::from_utf8_lossy(path).into_owned();
        let open = || sys::open_bytes(self.folder.as_raw_fd(), path, FOLDER, 0, self.resolve);
        match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && parent.is_some() => {
                let (above, name) = split(path)?;
                let above = self.parent(above)?;
                match sys::make_folder(above.as_raw_fd(), name, 0o755) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        Err(Refusal::system(&shown(), &error))
                    }
                    _ => open().map_err(|error| Refusal::system(&shown(), &error)),
                }
            }
            other => other.map_err(|error| Refusal::system(&shown(), &error)),
        }
    }

    fn start(&mut self, header: &[u8]) -> Result<(), Refusal> {
        let mut fields = Fields::parse(header, "")?;
        let shown = fields.needed_text("name")?;
        let name = bytes_of(&shown, "name")?;
        let kind = fields.needed_text("type")?;
        let mode = fields.number("mode", 0, 0o7777)?.unwrap_or(0o644) as u32;
        let user = fields.number("user", 0, i64::from(u32::MAX))?.unwrap_or(0) as u32;
        let group = fields.number("group", 0, i64::from(u32::MAX))?.unwrap_or(0) as u32;
        let mtime = fields.number("mtime", i64::MIN / 2, i64::MAX / 2)?.unwrap_or(0);
        let size = fields.number("size", 0, i64::MAX)?.unwrap_or(0) as u64;
        let target = bytes_of(&fields.text("target")?.unwrap_or_default(), "target")?;
        fields.done()?;
        if kind != "file" && size > 0 {
            return Err(Refusal::invalid("size", "only a file has content"));
        }
        let (above, last) = split(&name)?;
        let parent = self.parent(above)?;
        let at = parent.as_raw_fd();
        let failed = |error: Error| Refusal::system(&shown, &error);
        match kind.as_str() {
            "folder" => {
                match sys::make_folder(at, last, 0o700) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                    other => other.map_err(failed)?,
                }
                let flags = sys::O_RDONLY | sys::O_DIRECTORY | sys::O_NOFOLLOW;
                let folder = File::from(sys::open_bytes(at, last, flags, 0, sys::BENEATH).map_err(failed)?);
                sys::change_owner(folder.as_raw_fd(), user, group).map_err(failed)?;
                folder
                    .set_permissions(Permissions::from_mode(mode))
                    .map_err(failed)
            }
            "symlink" => {
                replace(at, last).map_err(failed)?;
                sys::make_symlink(&target, at, last).map_err(failed)?;
                let path = descriptor(&parent).join(OsStr::from_bytes(last));
                std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(failed)
            }
            "hardlink" => {
                let (target_above, target_last) = split(&target)?;
                let from = self.parent(target_above)?;
                if target != name {
                    replace(at, last).map_err(failed)?;
                    sys::make_link(from.as_raw_fd(), target_last, at, last).map_err(failed)?;
                }
                Ok(())
            }
            "file" => {
                replace(at, last).map_err(failed)?;
                let flags = sys::O_WRONLY | sys::O_CREAT | sys::O_EXCL | sys::O_NOFOLLOW;
                let file = File::from(sys::open_bytes(at, last, flags, 0, sys::BENEATH).map_err(failed)?);
                self.writing = Some(Writing {
                    file,
                    left: size,
                    owner: (user, group),
                    mode,
                    mtime,
                });
                self.close()
            }
            _ => Err(Refusal::invalid(
                "type",
                format!("got {kind:?}, expected file, folder, symlink or hardlink"),
            )),
        }
    }
}

/// Make room for a new file: what is there is unlinked, never written through.
fn replace(folder: i32, name: &[u8]) -> std::io::Result<()> {
    match sys::remove_file(folder, name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

struct Level {
    folder: OwnedFd,
    name: Vec<u8>,
    entries: VecDeque<OsString>,
}

/// Files that go out; asked for bytes as there is room for them.
pub struct Get {
    levels: Vec<Level>,
    first: Option<(OwnedFd, OsString, Vec<u8>)>,
    reading: Option<(OwnedFd, u64)>,
    ready: Vec<u8>,
}

impl Get {
    pub fn open(policy: &Policy, path: &str) -> Result<Get, Refusal> {
        // The last component is not followed: a link is copied as a link.
        let fd = open_checked(policy, false, path, sys::O_PATH | sys::O_NOFOLLOW)?;
        let real = std::fs::read_link(descriptor(&fd)).map_err(|error| Refusal::system(path, &error))?;
        let last = real.file_name().map(OsStr::to_os_string).unwrap_or_default();
        let above = real.parent().unwrap_or(&real).as_os_str().as_bytes().to_vec();
        let folder =
            sys::open_bytes(-100, &above, FOLDER, 0, 0).map_err(|error| Refusal::system(path, &error))?;
        let shown = path
            .rsplit('/')
            .next()
            .filter(|name| !name.is_empty())
            .unwrap_or(".")
            .as_bytes()
            .to_vec();
        let last = if last.is_empty() {
            OsString::from(".")
        } else {
            last
        };
        Ok(Get {
            levels: Vec::new(),
            first: Some((folder, last, shown)),
            reading: None,
            ready: Vec::new(),
        })
    }

    /// Append up to about `most` bytes; `false` once nothing is left.
    pub fn fill(&mut self, out: &mut Vec<u8>, most: usize) -> Result<bool, Refusal> {
        let end = out.len() + most;
        while out.len() < end {
            if !self.ready.is_empty() {
                let count = self.ready.len().min(end - out.len());
                out.extend(self.ready.drain(..count));
            } else if let Some((file, left)) = &mut self.reading {
                let count = (*left).min((end - out.len()) as u64) as usize;
                let got = sys::read_into(file.as_raw_fd(), out, count)
                    .map_err(|error| Refusal::system("read", &error))?;
                // One that became shorter meanwhile is filled up: its size was told already.
                out.resize(out.len() + if got == 0 { count } else { 0 }, 0);
                *left -= if got == 0 { count } else { got } as u64;
                if *left == 0 {
                    self.reading = None;
                }
            } else if let Some((folder, name, shown)) = self.first.take() {
                self.visit(&folder, &name, &shown)?;
            } else {
                let Some(level) = self.levels.last_mut() else {
                    return Ok(false);
                };
                match level.entries.pop_front() {
                    None => drop(self.levels.pop()),
                    Some(entry) => {
                        let shown = [&level.name[..], b"/", entry.as_bytes()].concat();
                        let folder = level
                            .folder
                            .try_clone()
                            .map_err(|error| Refusal::system("open", &error))?;
                        self.visit(&folder, &entry, &shown)?;
                    }
                }
            }
        }
        Ok(true)
    }

    fn visit(&mut self, folder: &OwnedFd, name: &OsStr, shown: &[u8]) -> Result<(), Refusal> {
        let failed = |error: Error| Refusal::system(&String::from_utf8_lossy(shown), &error);
        let open = |flags| {
            sys::open_bytes(
                folder.as_raw_fd(),
                name.as_bytes(),
                flags | sys::O_NOFOLLOW,
                0,
                sys::BENEATH,
            )
        };
        let known = match open(sys::O_PATH) {
            Ok(fd) => File::from(fd).metadata().map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()), // removed since
            Err(error) => return Err(failed(error)),
        };
        if known.is_symlink() {
            let target = std::fs::read_link(descriptor(folder).join(name)).map_err(failed)?;
            self.header("symlink", &known, shown, 0, target.as_os_str().as_bytes());
        } else if known.is_dir() {
            if self.levels.len() >= DEPTH {
                return Err(Refusal::invalid(
                    "path",
                    format!("more than {DEPTH} folders in each other"),
                ));
            }
            let inner = open(sys::O_RDONLY | sys::O_DIRECTORY).map_err(failed)?;
            let entries = std::fs::read_dir(descriptor(&inner)).map_err(failed)?;
            let entries = entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()
                .map_err(failed)?;
            self.header("folder", &known, shown, 0, b"");
            self.levels.push(Level {
                folder: inner,
                name: shown.to_vec(),
                entries,
            });
        } else if known.is_file() {
            let file = File::from(open(sys::O_RDONLY | sys::O_NONBLOCK | sys::O_NOCTTY).map_err(failed)?);
            let known = file.metadata().map_err(failed)?;
            if known.is_file() {
                self.header("file", &known, shown, known.len(), b"");
                if known.len() > 0 {
                    self.reading = Some((OwnedFd::from(file), known.len()));
                }
            }
        }
        // Sockets, pipes and devices mean nothing elsewhere.
        Ok(())
    }

    fn header(&mut self, kind: &str, known: &Metadata, shown: &[u8], size: u64, target: &[u8]) {
        let mut text = String::new();
        object(&[
            ("name", text_of(shown)),
            ("type", kind.into()),
            ("mode", i64::from(known.mode() & 0o7777).into()),
            ("user", i64::from(known.uid()).into()),
            ("group", i64::from(known.gid()).into()),
            ("mtime", known.mtime().into()),
            ("size", (size as i64).into()),
            ("target", text_of(target)),
        ])
        .write(&mut text);
        self.ready.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.ready.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests;
