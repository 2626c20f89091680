//! The loop: one thread that waits for the host, for programs and for their ends.
//!
//! Invariants:
//! - A program's output is read only while the host has granted credit and takes what is sent, so
//!   that nothing grows here: who does not read makes the program wait.
//! - A request has one answer, `Result` or `Error`, under its own id.
//! - What a session started ends with it, unless it was detached.

mod requests;
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::io::Result;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::fields::Refusal;
use crate::files::{Get, Put};
use crate::json::{object, Value};
use crate::policy::Policy;
use crate::ports::Ports;
use crate::process::{self, Process, Surroundings};
use crate::session::{Input, Session};
use crate::stats;
use crate::sys::{self, Epoll, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI};
use crate::wire::{self, Frame, Kind};

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
const PORTS: u64 = 7 << 56;

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
    /// No program runs, and a copy of this guest may go on from here: the box's command waits for the
    /// copy's host to adopt it, when the one that it had is not there.
    frozen: bool,
    pressure: Option<OwnedFd>,
    ports: Option<Ports>,
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
            frozen: false,
            pressure: None,
            ports: None,
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

    /// Take ports that the host makes while this guest runs.
    pub fn watch_ports(&mut self, ports: Ports) -> Result<()> {
        self.epoll.add(ports.raw(), EPOLLIN, PORTS)?;
        self.ports = Some(ports);
        Ok(())
    }

    /// Until the host ends it, or SIGTERM.
    pub fn run(&mut self) {
        loop {
            let opening = self.ports.as_ref().map_or(-1, Ports::timeout);
            let timeout = self.ending.as_ref().map_or(opening, |ending| {
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
                    PORTS => self.ports.iter_mut().for_each(Ports::look),
                    _ => {}
                }
            }
            if terminated {
                self.kill_all();
                return;
            }
            self.take_ports();
            self.advance();
            if self.ended_for_good() {
                return;
            }
        }
    }

    fn take_ports(&mut self) {
        for port in self.ports.iter_mut().flat_map(Ports::open).collect::<Vec<_>>() {
            if let Err(error) = self.add_session(port, true) {
                eprintln!("bedstone-agent: port: {error}");
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
            session.unread = session.full();
            if session.unread {
                return; // until the host has taken some
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
            while self.advance_session(index) {}
        }
    }

    /// Send what waits, then do one thing that waited for room; whether there may be another.
    ///
    /// Nothing is left for later but what an event comes back for: what was written to a session after
    /// its last flush would stay, and so would frames that were not read because it was full.
    fn advance_session(&mut self, index: usize) -> bool {
        let Some(Some(session)) = self.sessions.get_mut(index) else {
            return false;
        };
        session.flush();
        if !session.connected() || session.full() {
            return false;
        }
        if session.unread {
            self.receive(index);
            return true;
        }
        let gets: Vec<u32> = self
            .transfers
            .range((index, 0)..=(index, u32::MAX))
            .filter(|(_, transfer)| matches!(transfer, Transfer::Get(_, credit) if *credit > 0))
            .map(|((_, id), _)| *id)
            .collect();
        let parked: Vec<(i32, u8)> = self
            .programs
            .values()
            .filter(|program| program.owner.is_some_and(|(owner, _)| owner == index))
            .flat_map(|program| {
                program
                    .outputs
                    .iter()
                    .filter(|(_, output)| !output.polled && output.credit > 0)
                    .map(|(channel, _)| (program.pid, *channel))
            })
            .collect();
        for id in &gets {
            self.pump_get((index, *id));
        }
        for (pid, channel) in &parked {
            self.pump_output(*pid, *channel);
        }
        !gets.is_empty() || !parked.is_empty()
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
            if self.frozen && program.main {
                for output in program.outputs.values_mut().filter(|output| output.polled) {
                    output.polled = false;
                    self.epoll.remove(output.fd.as_raw_fd());
                }
                continue;
            }
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
