//! What the host may ask for, and the answers.

use std::time::{Duration, Instant};

use crate::agent::{Agent, Ending, Transfer, PROGRAMS};
use crate::fields::{Fields, Refusal};
use crate::files::{Get, Put};
use crate::json::{object, Value};
use crate::network::{self, Interface};
use crate::process::{self, Start};
use crate::wire::{Kind, WINDOW};
use crate::{stats, sys};
use std::os::fd::AsRawFd;

impl Agent {
    pub(super) fn request(
        &mut self,
        owner: (usize, u32),
        payload: &[u8],
    ) -> std::result::Result<Option<Value>, Refusal> {
        if self.busy(owner) {
            return Err(Refusal::invalid(
                "id",
                "it is the id of a request that is not done",
            ));
        }
        let mut fields = Fields::parse(payload, "")?;
        let operation = fields.needed_text("op")?;
        let done = object(&[]);
        match operation.as_str() {
            "exec" => {
                let start = Start::read(&mut fields)?;
                fields.done()?;
                return self.start(owner, start);
            }
            "signal" => {
                let signal = fields.needed_number("signal", 0, 64)? as i32;
                let group = fields.flag("group", false)?;
                let pid = self.program(&mut fields)?;
                fields.done()?;
                sys::send_signal(if group { -pid } else { pid }, signal)
                    .map_err(|error| Refusal::system("signal", &error))?;
            }
            "resize" => {
                let rows = fields.needed_number("rows", 1, 65535)? as u16;
                let columns = fields.needed_number("columns", 1, 65535)? as u16;
                let pid = self.program(&mut fields)?;
                fields.done()?;
                if let Some(program) = self.programs.get(&pid) {
                    program
                        .resize(rows, columns)
                        .map_err(|error| Refusal::system("resize", &error))?;
                }
            }
            "wait" => {
                let pid = fields.needed_number("pid", 1, i64::from(i32::MAX))? as i32;
                fields.done()?;
                if let Some((_, code)) = self.ended.iter().rev().find(|(known, _)| *known == pid) {
                    return Ok(Some(object(&[("exit", i64::from(*code).into())])));
                }
                if !self.programs.contains_key(&pid) {
                    return Err(Refusal::not_found("pid", format!("no program {pid}")));
                }
                self.waiting.push((owner, pid));
                return Ok(None);
            }
            "programs" => {
                fields.done()?;
                let list = self.programs.values().filter(|program| program.exit.is_none());
                let list = list.map(|program| {
                    object(&[
                        ("pid", i64::from(program.pid).into()),
                        ("name", program.name.as_str().into()),
                        ("main", Value::Bool(program.main)),
                    ])
                });
                return Ok(Some(object(&[("programs", Value::List(list.collect()))])));
            }
            "put" => {
                let path = fields.needed_text("path")?;
                fields.done()?;
                let put = Put::open(&self.policy, &path)?;
                self.transfers.insert(owner, Transfer::Put(put));
                return Ok(None);
            }
            "get" => {
                let path = fields.needed_text("path")?;
                fields.done()?;
                let get = Get::open(&self.policy, &path)?;
                self.transfers.insert(owner, Transfer::Get(get, WINDOW));
                return Ok(None);
            }
            "network" => {
                let interface = Interface::read(fields)?;
                self.policy.check_network()?;
                network::configure(&interface).map_err(|error| Refusal::system("network", &error))?;
            }
            "clock" => {
                let nanoseconds = fields.needed_number("nanoseconds", 0, i64::MAX)?;
                fields.done()?;
                self.guest_only("clock")?;
                sys::set_clock(nanoseconds).map_err(|error| Refusal::system("clock", &error))?;
            }
            "reseed" => {
                let entropy = fields.needed_text("entropy")?;
                fields.done()?;
                reseed(&entropy)?;
            }
            "stats" => {
                fields.done()?;
                let tasks = self.around.group.as_ref().and_then(|group| group.tasks());
                return Ok(Some(stats::stats(self.programs.len(), tasks)));
            }
            "pause" => {
                fields.done()?;
                self.freeze(true)?;
                self.flush_disks(); // what was written is there while nothing runs
            }
            "resume" => {
                let nanoseconds = fields.needed_number("nanoseconds", 0, i64::MAX)?;
                let entropy = fields.needed_text("entropy")?;
                fields.done()?;
                if self.around.guest {
                    sys::set_clock(nanoseconds).map_err(|error| Refusal::system("clock", &error))?;
                }
                reseed(&entropy)?;
                self.freeze(false)?; // only now, so that no program saw another time or pool
            }
            "adopt" => {
                fields.done()?;
                return self.adopt(owner).map(|()| None);
            }
            "shutdown" => {
                let grace = fields.needed_number("grace_milliseconds", 0, 3_600_000)? as u64;
                fields.done()?;
                for program in self.programs.values() {
                    let _ = sys::send_signal(-program.pid, sys::SIGTERM);
                }
                self.ending = Some(Ending {
                    owner,
                    deadline: Instant::now() + Duration::from_millis(grace),
                    killed: false,
                });
                return Ok(None);
            }
            _ => return Err(Refusal::invalid("op", format!("got {operation:?}"))),
        }
        Ok(Some(done))
    }

    fn guest_only(&self, field: &str) -> std::result::Result<(), Refusal> {
        if self.around.guest {
            return Ok(());
        }
        Err(Refusal::denied(
            field,
            "this agent is not the first process of a guest",
        ))
    }

    /// The running program that `pid` names; the main one where there is none.
    fn program(&self, fields: &mut Fields) -> std::result::Result<i32, Refusal> {
        let pid = fields.number("pid", 1, i64::from(i32::MAX))?;
        let found = self
            .programs
            .values()
            .find(|program| pid.map_or(program.main, |pid| i64::from(program.pid) == pid));
        // One that has ended keeps no number: it may be another's already.
        match found {
            Some(program) if program.exit.is_none() => Ok(program.pid),
            _ => Err(Refusal::not_found("pid", "no such program runs")),
        }
    }

    fn freeze(&mut self, frozen: bool) -> std::result::Result<(), Refusal> {
        if let Some(group) = &self.around.group {
            if let Err(error) = group.freeze(frozen) {
                let _ = group.freeze(false);
                return Err(Refusal::system("programs", &error));
            }
        }
        self.frozen = frozen;
        Ok(())
    }

    /// The box's command, whose host is another guest's, is this one's from here on.
    fn adopt(&mut self, owner: (usize, u32)) -> std::result::Result<(), Refusal> {
        let main = self
            .programs
            .values_mut()
            .find(|program| program.main && program.owner.is_none())
            .ok_or_else(|| Refusal::not_found("main", "there is no command without a host"))?;
        main.owner = Some(owner);
        for output in main.outputs.values_mut() {
            output.credit = WINDOW;
        }
        let (pid, waiting) = (main.pid, main.pending.len());
        let channels: Vec<u8> = main.outputs.keys().copied().collect();
        let started = object(&[
            ("pid", i64::from(pid).into()),
            ("waiting", (waiting as i64).into()),
        ]);
        if let Some(session) = self.session(owner) {
            session.send(Kind::Event, owner.1, &started);
        }
        for channel in channels {
            self.pump_output(pid, channel);
        }
        Ok(())
    }

    fn start(&mut self, owner: (usize, u32), start: Start) -> std::result::Result<Option<Value>, Refusal> {
        start.check(&self.policy)?;
        if start.main && self.main_started {
            return Err(Refusal::denied("main", "the box's command was started already"));
        }
        if self.programs.len() >= PROGRAMS || self.ending.is_some() {
            return Err(Refusal {
                code: "unavailable",
                field: String::new(),
                message: "no more programs can be started".to_string(),
            });
        }
        let (main, detach, name) = (start.main, start.detach, start.argv[0].clone());
        let program =
            process::spawn(start, owner, &self.around).map_err(|error| Refusal::system(&name, &error))?;
        let pid = program.pid;
        self.main_started |= main;
        let channels: Vec<u8> = program.outputs.keys().copied().collect();
        self.programs.insert(pid, program);
        let started = object(&[("pid", i64::from(pid).into())]);
        if detach {
            return Ok(Some(started));
        }
        if let Some(session) = self.session(owner) {
            session.send(Kind::Event, owner.1, &started);
        }
        for channel in channels {
            self.pump_output(pid, channel);
        }
        Ok(None)
    }
}

/// Mix bytes of the host's random generator, in hexadecimal, into the kernel's pool.
fn reseed(entropy: &str) -> std::result::Result<(), Refusal> {
    let wrong = || Refusal::invalid("entropy", "expected 32 to 512 bytes in hexadecimal");
    let digits = entropy.as_bytes();
    if !(64..=1024).contains(&digits.len()) || digits.len() % 2 != 0 {
        return Err(wrong());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut pool = Vec::with_capacity(8 + digits.len() / 2);
    pool.extend_from_slice(&(digits.len() as u32 * 4).to_le_bytes()); // bits of entropy
    pool.extend_from_slice(&(digits.len() as u32 / 2).to_le_bytes());
    for pair in digits.chunks(2) {
        let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or_else(wrong)?;
        pool.push((high << 4 | low) as u8);
    }
    let random =
        std::fs::File::open("/dev/urandom").map_err(|error| Refusal::system("/dev/urandom", &error))?;
    let fd = random.as_raw_fd();
    sys::ioctl(fd, 0x4008_5203, &mut pool[0]) // RNDADDENTROPY
        .and_then(|()| sys::ioctl_number(fd, 0x5207, 0)) // RNDRESEEDCRNG
        .map_err(|error| Refusal::system("reseed", &error))
}
