//! The seccomp filter of every program here: what no ordinary program needs is refused with EPERM.
//!
//! The list is that of docker's default profile for a process without capabilities, less what a
//! kernel of one's own makes harmless. Other architectures' calls (x32, i386) are refused as well.

const DENIED: &[u32] = &[
    101, // ptrace
    103, // syslog
    139, // sysfs
    153, // vhangup
    155, // pivot_root
    163, // acct
    164, // settimeofday
    165, // mount
    166, // umount2
    167, // swapon
    168, // swapoff
    169, // reboot
    172, // iopl
    173, // ioperm
    175, // init_module
    176, // delete_module
    179, // quotactl
    212, // lookup_dcookie
    227, // clock_settime
    246, // kexec_load
    248, // add_key
    249, // request_key
    250, // keyctl
    256, // migrate_pages
    272, // unshare
    279, // move_pages
    298, // perf_event_open
    300, // fanotify_init
    304, // open_by_handle_at
    305, // clock_adjtime
    308, // setns
    310, // process_vm_readv
    311, // process_vm_writev
    313, // finit_module
    320, // kexec_file_load
    321, // bpf
    323, // userfaultfd
    425, // io_uring_setup
    426, // io_uring_enter
    427, // io_uring_register
    428, // open_tree
    429, // move_mount
    430, // fsopen
    431, // fsconfig
    432, // fsmount
    433, // fspick
    442, // mount_setattr
];

/// AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; AF_VSOCK leads to the hypervisor, others to drivers.
const FAMILIES: &[u32] = &[1, 2, 10, 16];
/// PER_LINUX, UNAME26, PER_LINUX32, and the question for what it is.
const PERSONALITIES: &[u32] = &[0, 8, 0x20000, 0x20008, 0xffff_ffff];

const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const PERM: u32 = 0x0005_0001;
const NOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0x8000_0000;
const X86_64: u32 = 0xc000_003e;
const X32: u32 = 0x4000_0000;
const SOCKET: u32 = 41;
const PERSONALITY: u32 = 135;
const CLONE: u32 = 56;
const CLONE3: u32 = 435;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACES: u32 = 0x7e02_0000;

fn step(code: u16, yes: u8, no: u8, k: u32) -> [u8; 8] {
    let (code, k) = (code.to_le_bytes(), k.to_le_bytes());
    [code[0], code[1], yes, no, k[0], k[1], k[2], k[3]]
}

/// A call whose first argument has to be one of a few; goes on after it for every other call.
fn only(call: u32, values: &[u32]) -> Vec<[u8; 8]> {
    let count = values.len() as u8;
    let mut steps = vec![step(EQUAL, 0, count + 3, call), step(LOAD, 0, 0, 16)];
    steps.extend(
        (0..count)
            .zip(values)
            .map(|(at, value)| step(EQUAL, count - at, 0, *value)),
    );
    steps.push(step(RETURN, 0, 0, PERM));
    steps.push(step(RETURN, 0, 0, ALLOW));
    steps
}

/// The program, as struct sock_filter; see seccomp(2).
pub fn program() -> Vec<[u8; 8]> {
    let mut steps = vec![
        step(LOAD, 0, 0, 4),
        step(EQUAL, 1, 0, X86_64),
        step(RETURN, 0, 0, KILL),
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, PERM),
        // The flags of clone3 are in memory, where no filter sees them; libraries then use clone.
        step(EQUAL, 0, 1, CLONE3),
        step(RETURN, 0, 0, NOSYS),
        step(EQUAL, 0, 4, CLONE),
        step(LOAD, 0, 0, 16),
        step(ANY_BIT, 0, 1, NAMESPACES),
        step(RETURN, 0, 0, PERM),
        step(RETURN, 0, 0, ALLOW),
    ];
    steps.extend(only(SOCKET, FAMILIES));
    steps.extend(only(PERSONALITY, PERSONALITIES));
    for number in DENIED {
        steps.push(step(EQUAL, 0, 1, *number));
        steps.push(step(RETURN, 0, 0, PERM));
    }
    steps.push(step(RETURN, 0, 0, ALLOW));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: an interpreter of the few steps that are used.
    fn run(number: u32, argument: u32) -> u32 {
        let (steps, mut at, mut value) = (program(), 0, 0);
        loop {
            let [low, high, yes, no, k @ ..] = steps[at];
            let (code, k) = (u16::from_le_bytes([low, high]), u32::from_le_bytes(k));
            at += 1;
            match code {
                LOAD => {
                    value = match k {
                        0 => number,
                        4 => X86_64,
                        _ => argument,
                    }
                }
                RETURN => return k,
                _ => {
                    let holds = match code {
                        EQUAL => value == k,
                        AT_LEAST => value >= k,
                        _ => value & k != 0,
                    };
                    at += usize::from(if holds { yes } else { no });
                }
            }
        }
    }

    #[test]
    fn ordinary_calls_pass_and_listed_ones_do_not() {
        for number in [0, 1, 59, 231, 257] {
            assert_eq!(run(number, 0), ALLOW, "{number}");
        }
        for number in DENIED {
            assert_eq!(run(*number, 0), PERM, "{number}");
        }
        assert_eq!(run(X32 | 1, 0), PERM);
        assert_eq!(run(CLONE3, 0), NOSYS);
    }

    #[test]
    fn arguments_are_looked_at() {
        assert_eq!(run(CLONE, 17), ALLOW);
        assert_eq!(run(CLONE, 0x1000_0000 | 17), PERM); // CLONE_NEWUSER
        for (family, expected) in [
            (1, ALLOW),
            (2, ALLOW),
            (10, ALLOW),
            (16, ALLOW),
            (17, PERM),
            (40, PERM),
        ] {
            assert_eq!(run(SOCKET, family), expected, "{family}");
        }
        assert_eq!(run(PERSONALITY, 0xffff_ffff), ALLOW);
        assert_eq!(run(PERSONALITY, 0x0040_0000), PERM);
    }
}
