//! Bytes between the host and programs or files, as far as either has granted.

use std::os::fd::AsRawFd;

use crate::agent::{Agent, Transfer, OUTPUT, REMEMBERED, STDIN};
use crate::json::object;
use crate::sys::{self, EPOLLIN, EPOLLOUT};
use crate::wire::{Kind, CHUNK, WINDOW};

impl Agent {
    pub(super) fn take_data(&mut self, owner: (usize, u32), bytes: &[u8]) -> bool {
        if let Some(Transfer::Put(put)) = self.transfers.get_mut(&owner) {
            if bytes.is_empty() {
                let Some(Transfer::Put(put)) = self.transfers.remove(&owner) else {
                    return false;
                };
                match put.finish() {
                    Ok(()) => self.answer(owner, &object(&[])),
                    Err(refusal) => self.refuse(owner, &refusal),
                }
            } else if let Err(refusal) = put.feed(bytes) {
                self.transfers.remove(&owner);
                self.refuse(owner, &refusal);
            } else {
                self.allow(owner, bytes.len());
            }
            return true;
        }
        let Some(program) = self
            .programs
            .values_mut()
            .find(|program| program.owner == Some(owner))
        else {
            return true; // it has ended meanwhile
        };
        if program.closing || program.stdin.is_none() {
            return true;
        }
        if bytes.is_empty() {
            program.closing = true;
            if program.tty {
                program.pending.push(4); // a terminal has no end of file but this character
            }
        } else {
            program.pending.extend_from_slice(bytes);
            if program.pending.len() > WINDOW as usize + 1 {
                return false;
            }
        }
        let pid = program.pid;
        self.pump_stdin(pid);
        true
    }

    /// Grant the host more to send on channel 0.
    fn allow(&mut self, owner: (usize, u32), count: usize) {
        let mut payload = vec![0];
        payload.extend_from_slice(&(count as u32).to_le_bytes());
        if let Some(session) = self.session(owner) {
            session.send_bytes(Kind::Window, owner.1, &payload);
        }
    }

    pub(super) fn grant(&mut self, owner: (usize, u32), channel: u8, count: u32) -> bool {
        if let Some(Transfer::Get(_, credit)) = self.transfers.get_mut(&owner) {
            *credit = credit.saturating_add(count);
        } else if let Some(program) = self
            .programs
            .values_mut()
            .find(|program| program.owner == Some(owner))
        {
            if let Some(output) = program.outputs.get_mut(&channel) {
                output.credit = output.credit.saturating_add(count);
            }
        }
        true // the rest is done by `advance`
    }

    pub(super) fn pump_stdin(&mut self, pid: i32) {
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        let Some(stdin) = &program.stdin else { return };
        let fd = stdin.as_raw_fd();
        self.epoll.remove(fd);
        let mut written = 0;
        let mut broken = false;
        while written < program.pending.len() {
            match sys::write_some(fd, &program.pending[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let _ = self.epoll.add(fd, EPOLLOUT, STDIN | pid as u64);
                    break;
                }
                Err(_) => {
                    // Nobody reads it any more; what the host still sends is let go.
                    broken = true;
                    written = program.pending.len();
                }
            }
        }
        program.pending.drain(..written);
        if program.pending.is_empty() {
            program.pending = Vec::new();
            if broken || program.closing {
                program.stdin = None;
            }
        }
        let owner = program.owner;
        if let Some(owner) = owner.filter(|_| written > 0) {
            self.allow(owner, written);
        }
    }

    pub(super) fn pump_output(&mut self, pid: i32, channel: u8) {
        let Some(program) = self.programs.get_mut(&pid) else {
            return;
        };
        let (Some(owner), Some(output)) = (program.owner, program.outputs.get_mut(&channel)) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(owner.0).and_then(Option::as_mut) else {
            return;
        };
        let fd = output.fd.as_raw_fd();
        let mut ended = false;
        let mut empty = false;
        while output.credit > 0 && !session.full() {
            let most = CHUNK.min(output.credit as usize);
            let (count, answer) = session.send_data(owner.1, channel, |out| sys::read_into(fd, out, most));
            output.credit -= count as u32;
            match answer {
                Ok(0) => ended = true,
                Ok(_) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => empty = true,
                Err(_) => ended = true, // EIO: a terminal that no process has open
            }
            break;
        }
        // After its end, a pipe that a grandchild still holds is not waited for.
        ended |= empty && program.exit.is_some();
        if ended {
            session.send_bytes(Kind::Data, owner.1, &[channel]);
            self.epoll.remove(fd);
            program.outputs.remove(&channel);
            self.finish(pid);
        } else if empty != output.polled {
            output.polled = empty;
            if empty {
                let _ = self
                    .epoll
                    .add(fd, EPOLLIN, OUTPUT | (pid as u64) << 8 | u64::from(channel));
            } else {
                self.epoll.remove(fd);
            }
        }
    }

    /// Tell the end of a program whose output is told.
    pub(super) fn finish(&mut self, pid: i32) {
        let Some(program) = self.programs.get(&pid) else {
            return;
        };
        let Some(code) = program.exit else { return };
        if program.owner.is_some() && !program.outputs.is_empty() {
            return;
        }
        let Some(program) = self.programs.remove(&pid) else {
            return;
        };
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((pid, code));
        let value = object(&[("exit", i64::from(code).into())]);
        let mut owners: Vec<(usize, u32)> = program.owner.into_iter().collect();
        self.waiting.retain(|(owner, waited)| {
            if *waited == pid {
                owners.push(*owner);
            }
            *waited != pid
        });
        for owner in owners {
            self.answer(owner, &value);
        }
    }

    pub(super) fn pump_get(&mut self, owner: (usize, u32)) {
        loop {
            let Some(Transfer::Get(get, credit)) = self.transfers.get_mut(&owner) else {
                return;
            };
            let Some(Some(session)) = self.sessions.get_mut(owner.0) else {
                return;
            };
            if *credit == 0 || session.full() {
                return;
            }
            let most = CHUNK.min(*credit as usize);
            let (count, answer) = session.send_data(owner.1, 1, |out| get.fill(out, most));
            *credit = credit.saturating_sub(count as u32);
            match answer {
                Ok(true) => session.flush(),
                Ok(false) => {
                    session.send_bytes(Kind::Data, owner.1, &[1]);
                    self.transfers.remove(&owner);
                    self.answer(owner, &object(&[]));
                    return;
                }
                Err(refusal) => {
                    self.transfers.remove(&owner);
                    self.refuse(owner, &refusal);
                    return;
                }
            }
        }
    }
}
