//! One connection to the host: bytes in, bytes out, and how much of each may wait.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::json::Value;
use crate::wire::{self, Decoder, Frame, Kind};
use crate::{sys, wire::VERSION};

/// Beyond this much that the host has not taken, nothing more is read for it, neither its requests
/// nor the programs' output.
const BACKLOG: usize = 128 * 1024;

pub struct Session {
    pub fd: OwnedFd,
    /// A port outlives the host's connection; a socket is the connection.
    pub port: bool,
    /// Whether frames may have come that were not looked at, for want of room for their answers.
    pub unread: bool,
    /// Whether a host has greeted, and is still there.
    connected: bool,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
}

#[derive(PartialEq, Eq)]
pub enum Input {
    Frame(Frame),
    Nothing,
    /// The host is gone, or says what cannot be understood.
    Lost,
}

impl Session {
    pub fn new(fd: OwnedFd, port: bool) -> Session {
        Session {
            fd,
            port,
            unread: false,
            connected: false,
            decoder: Decoder::default(),
            out: Vec::new(),
            sent: 0,
        }
    }

    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn connected(&self) -> bool {
        self.connected
    }

    /// Begin anew, for the host that sent this nonce: what was to be sent to an earlier one is dropped.
    pub fn greet(&mut self, nonce: &[u8]) {
        self.out = Vec::new();
        self.sent = 0;
        self.connected = true;
        self.send_bytes(Kind::Hello, VERSION, nonce);
    }

    pub fn disconnect(&mut self) {
        self.connected = false;
        self.unread = false;
        self.decoder = Decoder::default(); // a frame that was cut has no end
        self.out = Vec::new();
        self.sent = 0;
    }

    pub fn send(&mut self, kind: Kind, id: u32, value: &Value) {
        let mut text = String::new();
        value.write(&mut text);
        self.send_bytes(kind, id, text.as_bytes());
    }

    pub fn send_bytes(&mut self, kind: Kind, id: u32, bytes: &[u8]) {
        wire::encode(kind, id, bytes, &mut self.out);
    }

    /// A data frame whose bytes `fill` writes straight into the buffer; nothing is sent for none.
    pub fn send_data<T>(&mut self, id: u32, channel: u8, fill: impl FnOnce(&mut Vec<u8>) -> T) -> (usize, T) {
        let start = self.out.len();
        wire::encode(Kind::Data, id, &[channel], &mut self.out);
        let head = self.out.len();
        let answer = fill(&mut self.out);
        let count = self.out.len() - head;
        if count == 0 {
            self.out.truncate(start);
        } else {
            self.out[start..start + 4].copy_from_slice(&(count as u32 + 6).to_le_bytes());
        }
        (count, answer)
    }

    pub fn full(&self) -> bool {
        self.out.len() - self.sent > BACKLOG
    }

    pub fn flush(&mut self) {
        while self.sent < self.out.len() {
            match sys::write_some(self.raw(), &self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(_) => break, // full for now; a lost connection is seen by reading
            }
        }
        if self.sent == self.out.len() {
            self.sent = 0;
            self.out.clear();
            self.out.shrink_to(4096);
        } else if self.sent > BACKLOG {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    pub fn flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// The next frame, read from the descriptor as needed.
    pub fn receive(&mut self) -> Input {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => return Input::Frame(frame),
                Ok(None) => {}
                Err(error) => {
                    eprintln!("bedstone-agent: {error}");
                    return Input::Lost;
                }
            }
            let mut buffer = Vec::new();
            match sys::read_into(self.raw(), &mut buffer, wire::CHUNK) {
                Ok(0) => return Input::Lost,
                Ok(_) => self.decoder.feed(&buffer),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Input::Nothing,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Input::Lost,
            }
        }
    }
}
