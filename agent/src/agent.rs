//! The loop: one thread that waits for the host, for programs and for their ends.
//!
//! Invariants:
//! - A program's output is read only while the host has granted credit and takes what is sent, so
//!   that nothing grows here: who does not read makes the program wait.
//! - A request has one answer, `Result` or `Error`, under its own id.
//! - What a session started ends with it, unless it was detached.

use std::collections::{BTreeMap, VecDeque};
use std::io::Result;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::fields::{Fields, Refusal};
use crate::files::{Get, Put};
use crate::json::{object, Value};
use crate::network::{self, Interface};
use crate::policy::Policy;
use crate::process::{self, Process, Start, Surroundings};
use crate::session::{Input, Session};
use crate::stats;
use crate::sys::{self, Epoll, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI};
use crate::wire::{self, Frame, Kind, CHUNK, WINDOW};

const REMEMBERED: usize = 64;
const SESSIONS: usize = 32;
const NONCE: usize = 64;
const PROGRAMS: usize = 1024;

/// What a token of epoll stands for, in its upper byte.
const SIGNALS: u64 = 1 << 56;
const LISTENER: u64 = 2 << 56;
const SESSION: u64 = 3 << 56;
const OUTPUT: u64 = 4 << 56;
const STDIN: u64 = 5 << 56;
const PRESSURE: u64 = 6 << 56;

enum Transfer {
    Put(Put),
    Get(Get, u32),
}

struct Ending {
    owner: (usize, u32),
    deadline: Instant,
    killed: bool,
}

pub struct Agent {
    epoll: Epoll,
    signals: OwnedFd,
    listener: Option<OwnedFd>,
    policy: Policy,
    around: Surroundings,
    sessions: Vec<Option<Session>>,
    /// By process id.
    programs: BTreeMap<i32, Process>,
    transfers: BTreeMap<(usize, u32), Transfer>,
    ended: VecDeque<(i32, i32)>,
    waiting: Vec<((usize, u32), i32)>,
    ending: Option<Ending>,
    main_started: bool,
    pressure: Option<OwnedFd>,
}

impl Agent {
    pub fn new(config: Config, around: Surroundings) -> Result<Agent> {
        let epoll = Epoll::new()?;
        let signals = sys::signals(&[sys::SIGCHLD, sys::SIGTERM])?;
        epoll.add(signals.as_raw_fd(), EPOLLIN, SIGNALS)?;
        sys::become_subreaper();
        Ok(Agent {
            epoll,
            signals,
            listener: None,
            policy: config.policy,
            around,
            sessions: Vec::new(),
            programs: BTreeMap::new(),
            transfers: BTreeMap::new(),
            ended: VecDeque::new(),
            waiting: Vec::new(),
            ending: None,
            main_started: false,
            pressure: None,
        })
    }

    pub fn listen(&mut self, listener: OwnedFd) -> Result<()> {
        self.epoll.add(listener.as_raw_fd(), EPOLLIN, LISTENER)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// A port or a socket; edge-triggered, because a port without a host is always "hung up".
    pub fn add_session(&mut self, fd: OwnedFd, port: bool) -> Result<()> {
        let free = self.sessions.iter().position(Option::is_none);
        let index = free.unwrap_or(self.sessions.len());
        if index >= SESSIONS {
            return Ok(()); // dropped, which closes it
        }
        self.epoll.add(
            fd.as_raw_fd(),
            EPOLLIN | EPOLLOUT | EPOLLET,
            SESSION | index as u64,
        )?;
        let session = Session::new(fd, port);
        if index == self.sessions.len() {
            self.sessions.push(None);
        }
        self.sessions[index] = Some(session);
        Ok(())
    }

    /// Tell the sessions when programs wait for memory 150 ms of a second.
    pub fn watch_pressure(&mut self, fd: OwnedFd) -> Result<()> {
        sys::write_some(fd.as_raw_fd(), b"some 150000 1000000\0")?;
        self.epoll.add(fd.as_raw_fd(), EPOLLPRI, PRESSURE)?;
        self.pressure = Some(fd);
        Ok(())
    }

    /// Until the host ends it, or SIGTERM.
    pub fn run(&mut self) {
        loop {
            let timeout = self.ending.as_ref().map_or(-1, |ending| {
                let left = ending.deadline.saturating_duration_since(Instant::now());
                left.as_millis().min(60_000) as i32 + 1
            });
            let mut terminated = false;
            for event in self.epoll.wait(timeout) {
                let (token, events) = (event.token, event.events);
                let low = token & 0xffff_ffff;
                match token & (0xff << 56) {
                    SIGNALS => terminated |= self.take_signals(),
                    LISTENER => self.take_connection(),
                    SESSION => self.session_event(low as usize, events),
                    OUTPUT => self.pump_output((low >> 8) as i32, low as u8),
                    STDIN => self.pump_stdin(low as i32),
                    PRESSURE => self.tell_pressure(),
                    _ => {}
                }
            }
            if terminated {
                self.kill_all();
                return;
            }
            self.advance();
            if self.ended_for_good() {
                return;
            }
        }
    }

    /// Whether SIGTERM was among them.
    fn take_signals(&mut self) -> bool {
        let mut buffer = Vec::new();
        let mut terminated = false;
        while sys::read_into(self.signals.as_raw_fd(), &mut buffer, 128 * 8).is_ok() {
            // struct signalfd_siginfo is 128 bytes and begins with the number.
            terminated |= buffer
                .chunks(128)
                .any(|info| wire::number(info) as i32 == sys::SIGTERM);
            buffer.clear();
        }
        while let Some((pid, status)) = sys::reap() {
            let code = process::exit_code(status);
            if let Some(program) = self.programs.get_mut(&pid) {
                program.exit = Some(code);
                self.pump_output(pid, 1);
                self.pump_output(pid, 2);
                self.finish(pid);
            }
        }
        terminated
    }

    fn take_connection(&mut self) {
        let Some(listener) = &self.listener else { return };
        if let Ok(fd) = sys::accept(listener.as_raw_fd()) {
            if let Err(error) = self.add_session(fd, false) {
                eprintln!("bedstone-agent: accept: {error}");
            }
        }
    }

    fn session_event(&mut self, index: usize, events: u32) {
        let Some(Some(session)) = self.sessions.get_mut(index) else {
            return;
        };
        if session.port && events & EPOLLHUP != 0 {
            self.lose(index);
            return;
        }
        self.receive(index);
    }

    /// Send what waits, read more output where there is room again, and take the host's frames.
    fn receive(&mut self, index: usize) {
        loop {
            let Some(Some(session)) = self.sessions.get_mut(index) else {
                return;
            };
            session.flush();
            if session.full() {
                return; // the host takes nothing: EPOLLOUT comes back here
            }
            match session.receive() {
                Input::Frame(frame) => {
                    if !self.take_frame(index, frame) {
                        self.lose(index);
                        return;
                    }
                }
                Input::Nothing => return,
                Input::Lost => {
                    self.lose(index);
                    return;
                }
            }
        }
    }

    /// Pending work of every session, after each round of events.
    fn advance(&mut self) {
        for index in 0..self.sessions.len() {
            let ids: Vec<u32> = self
                .transfers
                .range((index, 0)..=(index, u32::MAX))
                .map(|((_, id), _)| *id)
                .collect();
            for id in ids {
                self.pump_get((index, id));
            }
            let mut room = false;
            if let Some(Some(session)) = self.sessions.get_mut(index) {
                session.flush();
                room = session.connected() && !session.full();
            }
            if room {
                let parked: Vec<(i32, u8)> = self
                    .programs
                    .values()
                    .filter(|program| program.owner.is_some_and(|(owner, _)| owner == index))
                    .flat_map(|program| {
                        program
                            .outputs
                            .iter()
                            .filter(|(_, output)| !output.polled)
                            .map(|(channel, _)| (program.pid, *channel))
                    })
                    .collect();
                for (pid, channel) in parked {
                    self.pump_output(pid, channel);
                }
            }
        }
    }

    fn lose(&mut self, index: usize) {
        let Some(Some(session)) = self.sessions.get_mut(index) else {
            return;
        };
        session.disconnect();
        if !session.port {
            self.sessions[index] = None; // closing it removes it from epoll
        }
        self.end_work_of(index);
    }

    fn end_work_of(&mut self, index: usize) {
        self.transfers.retain(|(owner, _), _| *owner != index);
        self.waiting.retain(|((owner, _), _)| *owner != index);
        if self.ending.as_ref().is_some_and(|ending| ending.owner.0 == index) {
            self.kill_all();
        }
        for program in self
            .programs
            .values_mut()
            .filter(|program| program.owner.is_some_and(|(owner, _)| owner == index))
        {
            program.owner = None;
            program.stdin = None;
            program.outputs.clear();
            if program.exit.is_none() {
                let _ = sys::send_signal(-program.pid, sys::SIGHUP);
                let _ = sys::send_signal(-program.pid, sys::SIGKILL);
            }
        }
        self.programs
            .retain(|_, program| program.exit.is_none() || program.owner.is_some());
    }

    /// `false` for what no host may send.
    fn take_frame(&mut self, index: usize, frame: Frame) -> bool {
        let owner = (index, frame.id);
        if frame.kind == Kind::Hello {
            // Also of a host that was gone and is back before that was seen.
            if frame.payload.len() > NONCE {
                return false;
            }
            self.end_work_of(index);
            if let Some(Some(session)) = self.sessions.get_mut(index) {
                session.greet(&frame.payload);
            }
            return true;
        }
        if self.session(owner).is_none() {
            return false; // no greeting
        }
        match frame.kind {
            Kind::Request => {
                let answer = self.request(owner, &frame.payload);
                match answer {
                    Ok(Some(value)) => self.answer(owner, &value),
                    Ok(None) => {}
                    Err(refusal) => self.refuse(owner, &refusal),
                }
                true
            }
            Kind::Data => match frame.payload.split_first() {
                Some((0, bytes)) => self.take_data(owner, bytes),
                _ => false,
            },
            Kind::Window => {
                if let (5, Some(channel)) = (frame.payload.len(), frame.payload.first()) {
                    self.grant(owner, *channel, wire::number(&frame.payload[1..]))
                } else {
                    false
                }
            }
            _ => false,
        }
    }

    fn session(&mut self, owner: (usize, u32)) -> Option<&mut Session> {
        self.sessions
            .get_mut(owner.0)?
            .as_mut()
            .filter(|session| session.connected())
    }

    fn answer(&mut self, owner: (usize, u32), value: &Value) {
        if let Some(session) = self.session(owner) {
            session.send(Kind::Result, owner.1, value);
        }
    }

    fn refuse(&mut self, owner: (usize, u32), refusal: &Refusal) {
        let text = refusal.to_json();
        if let Some(session) = self.session(owner) {
            session.send_bytes(Kind::Error, owner.1, text.as_bytes());
        }
    }

    fn busy(&self, owner: (usize, u32)) -> bool {
        self.transfers.contains_key(&owner)
            || self.waiting.iter().any(|(known, _)| *known == owner)
            || self.programs.values().any(|program| program.owner == Some(owner))
    }

    fn request(
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
                return Ok(Some(stats::stats(self.programs.len())));
            }
            "pause" => {
                fields.done()?;
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

    fn take_data(&mut self, owner: (usize, u32), bytes: &[u8]) -> bool {
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

    fn grant(&mut self, owner: (usize, u32), channel: u8, count: u32) -> bool {
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

    fn pump_stdin(&mut self, pid: i32) {
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

    fn pump_output(&mut self, pid: i32, channel: u8) {
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
    fn finish(&mut self, pid: i32) {
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

    fn pump_get(&mut self, owner: (usize, u32)) {
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

    fn flush_disks(&self) {
        if self.around.guest {
            sys::sync_all(); // elsewhere the disks are everybody's
        }
    }

    fn tell_pressure(&mut self) {
        let event = object(&[
            ("event", "memory_pressure".into()),
            ("stalled_microseconds", stats::memory_stalled().into()),
        ]);
        for session in self
            .sessions
            .iter_mut()
            .flatten()
            .filter(|session| session.connected() && !session.full())
        {
            session.send(Kind::Event, 0, &event);
        }
    }

    fn kill_all(&mut self) {
        for program in self.programs.values() {
            let _ = sys::send_signal(-program.pid, sys::SIGKILL);
        }
        if self.around.guest {
            let _ = sys::send_signal(-1, sys::SIGKILL); // also those that left their sessions
        }
    }

    /// Whether a shutdown that was asked for is done, and told.
    fn ended_for_good(&mut self) -> bool {
        let Some(ending) = &mut self.ending else {
            return false;
        };
        let running = self.programs.values().any(|program| program.exit.is_none());
        if running && Instant::now() < ending.deadline {
            return false;
        }
        let owner = ending.owner;
        if !ending.killed {
            ending.killed = true;
            ending.deadline = Instant::now() + Duration::from_secs(1);
            self.kill_all();
            if running {
                return false; // one second for the kernel to end them
            }
        }
        self.flush_disks();
        self.answer(owner, &object(&[]));
        let told = Instant::now() + Duration::from_secs(1);
        while let Some(session) = self.session(owner) {
            session.flush();
            if session.flushed() || Instant::now() > told {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
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
