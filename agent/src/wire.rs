//! Frames: how bytes of the serial port become messages and back. Pure.
//!
//! A frame is `length: u32`, `kind: u8`, `id: u32` and `length - 5` bytes of payload, all little
//! endian. A length outside 5..=MAX_LENGTH is an error of the peer, after which nothing it sends can
//! be read. docs/reference/agent-protocol.md has the whole protocol.

pub const VERSION: u32 = 1;
pub const HEADER: usize = 9;
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// The most bytes that one `Data` frame carries from here.
pub const CHUNK: usize = 32 * 1024;
/// What either side may send on a channel before it was granted more.
pub const WINDOW: u32 = 128 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Hello = 0,
    Request = 1,
    Result = 2,
    Error = 3,
    Data = 4,
    Window = 5,
    Event = 6,
}

impl Kind {
    fn from(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::Hello,
            1 => Kind::Request,
            2 => Kind::Result,
            3 => Kind::Error,
            4 => Kind::Data,
            5 => Kind::Window,
            6 => Kind::Event,
            _ => return None,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub id: u32,
    pub payload: Vec<u8>,
}

/// Takes bytes as they come and gives frames; holds at most one frame's bytes and one read's.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` until more bytes came.
    pub fn next(&mut self) -> Result<Option<Frame>, String> {
        let rest = &self.buffer[self.start..];
        if rest.len() < HEADER {
            self.tidy();
            return Ok(None);
        }
        let length = number(rest) as usize;
        if !(5..=MAX_PAYLOAD + 5).contains(&length) {
            return Err(format!(
                "got a frame of {length} bytes, expected 5 to {}",
                MAX_PAYLOAD + 5
            ));
        }
        if rest.len() < 4 + length {
            return Ok(None);
        }
        let kind = Kind::from(rest[4]).ok_or_else(|| format!("got a frame of kind {}", rest[4]))?;
        let frame = Frame {
            kind,
            id: number(&rest[5..]),
            payload: rest[HEADER..4 + length].to_vec(),
        };
        self.start += 4 + length;
        self.tidy();
        Ok(Some(frame))
    }

    fn tidy(&mut self) {
        if self.start == self.buffer.len() {
            self.start = 0;
            if self.buffer.capacity() > CHUNK {
                self.buffer = Vec::new();
            } else {
                self.buffer.clear();
            }
        }
    }
}

/// The first four bytes as a number; 0 where there are fewer.
pub fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
}

pub fn encode(kind: Kind, id: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(payload.len() as u32 + 5).to_le_bytes());
    out.push(kind as u8);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift: the same bytes in every run.
    pub fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut seed = 1;
        let mut bytes = Vec::new();
        let kinds = [Kind::Request, Kind::Data, Kind::Window, Kind::Event];
        let mut sent = Vec::new();
        for id in 0..200 {
            let size = (random(&mut seed) % 3000) as usize;
            let payload: Vec<u8> = (0..size).map(|_| random(&mut seed) as u8).collect();
            let kind = kinds[(random(&mut seed) % 4) as usize];
            encode(kind, id, &payload, &mut bytes);
            sent.push(Frame { kind, id, payload });
        }
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((random(&mut seed) as usize % 700 + 1).min(rest.len()));
            decoder.feed(now);
            while let Some(frame) = decoder.next().unwrap() {
                got.push(frame);
            }
            rest = later;
        }
        assert_eq!(sent, got);
        assert!(decoder.buffer.is_empty());
    }

    #[test]
    fn a_length_that_no_frame_has_is_refused_before_memory_is_taken() {
        for length in [0u32, 4, MAX_PAYLOAD as u32 + 6, u32::MAX] {
            let mut decoder = Decoder::default();
            decoder.feed(&length.to_le_bytes());
            decoder.feed(&[1, 0, 0, 0, 0]);
            assert!(decoder.next().is_err(), "{length}");
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut seed = 7;
        for _ in 0..2000 {
            let mut decoder = Decoder::default();
            let size = random(&mut seed) % 64;
            let mut bytes: Vec<u8> = (0..size).map(|_| random(&mut seed) as u8).collect();
            if bytes.len() > 4 && random(&mut seed) % 2 == 0 {
                bytes[1..4].fill(0); // else nearly every length is refused
            }
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
