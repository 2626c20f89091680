//! The agent of a Bedstone microVM: the guest's first process, which does what the host asks for over
//! virtio-serial and what the policy, sealed in before the start, allows.
//!
//! `bedstone-agent --listen SOCKET --config FILE` is the same as an ordinary process, for tests: it
//! mounts nothing, gives up no privileges, and sets no clock. `--tsc` tells kilohertz.

mod agent;
mod boot;
mod config;
mod fields;
mod files;
mod filter;
mod json;
mod network;
mod policy;
mod ports;
mod process;
mod session;
mod stats;
mod sys;
mod wire;

use std::io::{Error, Result};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

fn serve(socket: &str, config: &str) -> Result<()> {
    let config =
        config::Config::read(&std::fs::read(config)?).map_err(|refusal| Error::other(refusal.to_json()))?;
    let around = process::Surroundings {
        files: config.files.map(|files| files as u64),
        ..Default::default()
    };
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let mut agent = agent::Agent::new(config, around)?;
    agent.listen(OwnedFd::from(listener))?;
    agent.run();
    Ok(())
}

/// How fast this machine's time stamp counter runs, which an emulated guest has no clock to find out.
#[cfg(target_arch = "x86_64")]
fn tsc_kilohertz() -> u64 {
    use std::time::{Duration, Instant};
    // SAFETY: every x86-64 has the instruction.
    let read = || (Instant::now(), unsafe { std::arch::x86_64::_rdtsc() });
    let (start, first) = read();
    std::thread::sleep(Duration::from_millis(50));
    let (end, last) = read();
    let elapsed = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
    (last - first).saturating_mul(1_000_000) / elapsed.max(1)
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        if let Err(error) = boot::run() {
            eprintln!("bedstone-agent: {error}");
        }
        sys::sync_all();
        sys::power_off();
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--version"] => println!(
            "bedstone-agent {} protocol {}",
            env!("CARGO_PKG_VERSION"),
            wire::VERSION
        ),
        ["--tsc"] => println!("{}", tsc_kilohertz()),
        ["--listen", socket, "--config", config] => {
            if let Err(error) = serve(socket, config) {
                eprintln!("bedstone-agent: {error}");
                return ExitCode::FAILURE;
            }
        }
        _ => {
            eprintln!("usage: bedstone-agent --listen SOCKET --config FILE");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
