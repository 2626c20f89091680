//! What the guest uses, from its own kernel. The parsers are pure.

use crate::json::{object, Value};

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The number after `name` in lines such as `MemTotal:  16384 kB`; 0 where there is none.
fn after(text: &str, name: &str) -> i64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_default();
    let digits: String = line
        .chars()
        .skip_while(|sign| !sign.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(0)
}

/// Microseconds for which something waited: `some … total=123` of /proc/pressure.
fn stalled(text: &str) -> i64 {
    text.lines()
        .find(|line| line.starts_with("some"))
        .and_then(|line| line.rsplit_once("total="))
        .map_or(0, |(_, total)| total.trim().parse().unwrap_or(0))
}

/// Ticks of 10 ms that all processors worked: the first line of /proc/stat less idle and waiting.
fn busy(text: &str) -> i64 {
    let line = text.lines().next().unwrap_or_default();
    let numbers: Vec<i64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|word| word.parse().unwrap_or(0))
        .collect();
    numbers.iter().sum::<i64>() - numbers.get(3).unwrap_or(&0) - numbers.get(4).unwrap_or(&0)
}

/// Sectors of 512 bytes read and written by all virtio disks: /proc/diskstats.
fn disks(text: &str) -> (i64, i64) {
    let mut sum = (0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.len() > 9 && words[2].starts_with("vd") {
            sum.0 += words[5].parse().unwrap_or(0);
            sum.1 += words[9].parse().unwrap_or(0);
        }
    }
    sum
}

pub fn memory_stalled() -> i64 {
    stalled(&read("/proc/pressure/memory"))
}

/// What the guest uses; `tasks` is how many the programs have, else those of the whole guest are told.
pub fn stats(programs: usize, tasks: Option<i64>) -> Value {
    let memory = read("/proc/meminfo");
    let total = after(&memory, "MemTotal:") * 1024;
    let tasks = tasks.unwrap_or_else(|| {
        read("/proc/loadavg")
            .split_whitespace()
            .nth(3)
            .and_then(|word| word.split_once('/'))
            .map_or(0, |(_, tasks)| tasks.parse().unwrap_or(0))
    });
    let (read_sectors, written_sectors) = disks(&read("/proc/diskstats"));
    object(&[
        ("cpu_microseconds", (busy(&read("/proc/stat")) * 10_000).into()),
        ("memory_total", total.into()),
        (
            "memory_used",
            (total - after(&memory, "MemAvailable:") * 1024).into(),
        ),
        ("memory_stalled_microseconds", memory_stalled().into()),
        ("oom_kills", after(&read("/proc/vmstat"), "oom_kill ").into()),
        ("tasks", Value::Number(tasks)),
        ("programs", (programs as i64).into()),
        ("io_read", (read_sectors * 512).into()),
        ("io_written", (written_sectors * 512).into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_kernel_s_texts() {
        assert_eq!(
            after("MemTotal:       16384 kB\nMemFree: 5 kB\n", "MemTotal:"),
            16384
        );
        assert_eq!(after("", "MemTotal:"), 0);
        assert_eq!(
            stalled("some avg10=0.00 total=123\nfull avg10=0.00 total=9\n"),
            123
        );
        assert_eq!(busy("cpu  1 2 3 400 50 6 7 8 9 9\n"), 27);
        assert_eq!(
            disks(" 254 0 vda 1 0 8 0 2 0 16 0 0\n 7 0 loop0 1 0 99 0 1 0 99 0\n"),
            (8, 16)
        );
        assert_eq!(busy(""), 0);
    }
}
